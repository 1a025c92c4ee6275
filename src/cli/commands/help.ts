/** `vbdkit help TOPIC`: a command, a driver or a filter. */
import { Command } from "commander";
import { didYouMean } from "../../util/nearest.ts";
import { UsageError } from "../errors.ts";
import { print } from "../output.ts";
import { describeEntry } from "./drivers.ts";

export function helpCommand(program: Command): Command {
  return new Command("help")
    .description("help about a command, a driver or a filter")
    .argument("[TOPIC]", "its name")
    .action(async (topic: string | undefined) => {
      if (topic === undefined) return program.outputHelp();
      const command = program.commands.find((candidate) => candidate.name() === topic);
      if (command !== undefined) return command.outputHelp();
      const { catalogue } = await import("../catalogue.ts");
      const { drivers, filters } = catalogue();
      const driver = drivers.find((entry) => entry.name === topic);
      if (driver !== undefined) return print(describeEntry("driver", driver));
      const filter = filters.find((entry) => entry.name === topic);
      if (filter !== undefined) return print(describeEntry("filter", filter));
      const known = [...program.commands.map((c) => c.name()), ...drivers, ...filters].map(
        (item) => (typeof item === "string" ? item : item.name),
      );
      const hint = didYouMean(topic, known) || `; there is about ${known.join(", ")}`;
      throw new UsageError(`there is no help about "${topic}"${hint}`);
    });
}
