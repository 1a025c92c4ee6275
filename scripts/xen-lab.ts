/**
 * A real Xen for a person: `npm run xen-lab -- --help`. docs/xen-lab.md has the rest.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { labImages } from "../test/xen/lab/images.ts";
import { Lab } from "../test/xen/lab/lab.ts";

const HELP = `A real Xen with a Linux dom0, under QEMU's emulation; needs no rights and no preparation.

npm run xen-lab                     boots, says what runs there, ends
npm run xen-lab -- shell            a prompt in dom0; "exit" ends the lab
npm run xen-lab -- run FILE         runs a script of bash in dom0
npm run xen-lab -- run COMMAND...   runs a command in dom0; its exit status is ours
npm run xen-lab -- all              runs all tests of the lab, those that npm test leaves out, too
npm run xen-lab -- bench [ROW...]   vbdkit daemon beside Linux's blkback and QEMU's qdisk; the same as
                                    npm run bench -- lab, which has options

  --timeout SECONDS   of run; 600 if absent
  --memory MEBIBYTES  for guests, beside dom0; 448 if absent
  --console           prints the consoles of Xen and dom0 at the end, too

In dom0 the checkout is /checkout (read-only, as it was when the lab booted), where commands begin; vbdkit, node, xl,
xenstore-*, fio, mkfs.ext4 and QEMU's qdisk (start-qdisk) are on the PATH. /lab is the folder that the lab prints.
The first run fetches about 250 MiB of Debian's packages into .cache/; later ones need no network.
`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    help: { type: "boolean", short: "h" },
    console: { type: "boolean" },
    timeout: { type: "string", default: "600" },
    memory: { type: "string", default: "448" },
  },
});
const [verb = "report", ...words] = positionals;
const timeout = Number(values.timeout);
const guestMebibytes = Number(values.memory);

/** What the verb does in a lab that runs; resolves with the exit status. */
const verbs: Readonly<Record<string, (lab: Lab) => Promise<number>>> = {
  async report(lab) {
    const facts =
      "xl info | grep xen_version; uname -srv; node --version; cut -d' ' -f1 /proc/uptime";
    console.log(await lab.check(facts));
    return 0;
  },
  async run(lab) {
    const script =
      words.length === 1 && existsSync(words[0]!)
        ? readFileSync(words[0]!, "utf8")
        : words.join(" ");
    const { status, stdout, stderr } = await lab.run(script, { timeout });
    process.stdout.write(stdout);
    process.stderr.write(stderr);
    return status;
  },
  shell: async (lab) => await lab.shell(),
};

if (verb === "all" && words.length === 0) {
  const test = [...process.execArgv, join(import.meta.dirname, "test.ts"), "test/xen/lab/"];
  process.exit(spawnSync(process.execPath, test, { stdio: "inherit" }).status ?? 1);
}
if (verb === "bench") {
  const bench = [...process.execArgv, join(import.meta.dirname, "../bench/bench.ts"), "lab"];
  process.exit(spawnSync(process.execPath, [...bench, ...words], { stdio: "inherit" }).status ?? 1);
}
const act = verbs[verb];
const faulty = act === undefined || !(timeout > 0) || !(guestMebibytes > 0);
if (values.help || faulty || (verb === "run") !== words.length > 0) {
  (values.help ? process.stdout : process.stderr).write(HELP);
  process.exit(values.help ? 0 : 2);
}
await labImages(console.error);
const began = performance.now();
await using lab = await Lab.boot({ guestMebibytes, shell: verb === "shell" });
console.error(
  `dom0 runs after ${((performance.now() - began) / 1000).toFixed(1)} s; /lab is ${lab.folder}`,
);
process.exitCode = await act(lab);
if (values.console) console.error(lab.console);
