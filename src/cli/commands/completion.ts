/** `vbdkit completion SHELL`: a script for the shell, made from the commands themselves, so that it cannot be stale. */
import { Argument, Command, type Option } from "commander";
import { print } from "../output.ts";

interface Words {
  readonly commands: readonly {
    name: string;
    summary: string;
    words: readonly string[];
    /** Its arguments that are guests and disks of a running machine, which is asked for their names. */
    asks: readonly ("DOMAIN" | "VDEV" | undefined)[];
  }[];
  /** Options whose value is a word of its own. */
  readonly valued: readonly string[];
  /** What may follow an option, of whatever command. */
  readonly values: ReadonlyMap<string, readonly string[]>;
  readonly drivers: readonly string[];
  readonly filters: readonly string[];
}

const shells = { bash, zsh, fish };

export function completionCommand(program: Command): Command {
  return new Command("completion")
    .description("print a completion script for a shell")
    .addArgument(new Argument("<SHELL>").choices(Object.keys(shells)))
    .addHelpText(
      "after",
      `
Examples:
  source <(vbdkit completion bash)
  vbdkit completion zsh > "\${fpath[1]}/_vbdkit"
  vbdkit completion fish > ~/.config/fish/completions/vbdkit.fish
`,
    )
    .action(async (shell: keyof typeof shells) => {
      const { catalogue } = await import("../catalogue.ts");
      const { drivers, filters } = catalogue();
      const words: Words = {
        commands: program.commands.map((command) => ({
          name: command.name(),
          summary: command.description(),
          words: [
            ...command.commands.map((child) => child.name()),
            ...command.registeredArguments.flatMap((argument) => argument.argChoices ?? []),
            ...command.options.flatMap((option) => option.long ?? []),
            "--help",
          ],
          asks: command.registeredArguments.map(asks),
        })),
        valued: [
          ...new Set(
            program.commands
              .flatMap(({ options }) => options)
              .flatMap(({ long, short, required }) => (required ? [long, short] : []))
              .filter((name) => name != null),
          ),
        ],
        values: new Map([
          ...program.commands.flatMap(({ options }) => options).flatMap(choicesOf),
          ["--filter", filters.map((filter) => filter.name)],
        ]),
        drivers: drivers.map((driver) => driver.name),
        filters: filters.map((filter) => filter.name),
      };
      print(shells[shell](words));
    });
}

function asks(argument: Argument): "DOMAIN" | "VDEV" | undefined {
  const name = argument.name();
  // `vbdkit machine DOMAIN...` names those that are to be.
  return !argument.variadic && (name === "DOMAIN" || name === "VDEV") ? name : undefined;
}

function choicesOf({ long, argChoices }: Option): [string, readonly string[]][] {
  return long == null || argChoices === undefined ? [] : [[long, argChoices]];
}

function bash(words: Words): string {
  const cases = words.commands
    .map((command) => `    ${command.name}) words="${wordsOf(command, words)}" ;;`)
    .join("\n");
  const values = [...words.values]
    .map(([option, choices]) => `    ${option}) words="${choices.join(" ")}" ;;`)
    .join("\n");
  const asking = words.commands.flatMap(({ name, asks }) =>
    asks.flatMap((what, index) => {
      if (what === undefined) return [];
      const of = what === "VDEV" ? ` "\${given[0]}"` : "";
      return `    ${name}:${index}) words="$(_vbdkit_names${of})" ;;`;
    }),
  );
  return `# bash completion for vbdkit; source it, or put it in /usr/share/bash-completion/completions/vbdkit
# The names of a running machine's guests, or of the disks of one.
_vbdkit_names() {
  local server=() i
  for ((i = 2; i < COMP_CWORD - 1; i++)); do
    if [ "\${COMP_WORDS[i]}" = --machine ]; then server=(--machine "\${COMP_WORDS[i + 1]}"); fi
  done
  vbdkit list --names "\${server[@]}" "$@" 2>/dev/null
}
_vbdkit() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD - 1]}" words="" given=() i
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${words.commands.map((command) => command.name).join(" ")} --help --version" -- "$current"))
    return
  fi
  case "$previous" in
${values}
  esac
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    return
  fi
  for ((i = 2; i < COMP_CWORD; i++)); do
    case "\${COMP_WORDS[i]}" in
    ${words.valued.join(" | ")}) i=$((i + 1)) ;;
    -*) ;;
    *) given+=("\${COMP_WORDS[i]}") ;;
    esac
  done
  if [ "\${current:0:1}" != - ]; then
    case "\${COMP_WORDS[1]}:\${#given[@]}" in
${asking.join("\n")}
    esac
  fi
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    return
  fi
  case "\${COMP_WORDS[1]}" in
${cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
}
complete -o filenames -F _vbdkit vbdkit`;
}

function zsh(words: Words): string {
  const commands = words.commands
    .map((command) => `    '${command.name}:${command.summary.replaceAll("'", "'\\''")}'`)
    .join("\n");
  const cases = words.commands
    .map((command) => {
      const guests = command.asks[0] === undefined ? "" : " $(vbdkit list --names 2>/dev/null)";
      return `    ${command.name}) compadd -- ${wordsOf(command, words)}${guests} ;;`;
    })
    .join("\n");
  const values = [...words.values]
    .map(([option, choices]) => `    ${option}) compadd -- ${choices.join(" ")}; return ;;`)
    .join("\n");
  return `#compdef vbdkit
_vbdkit() {
  local -a commands=(
${commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "\${words[CURRENT-1]}" in
${values}
  esac
  case "\${words[2]}" in
${cases}
  esac
  _files
}
if [ "\${funcstack[1]}" = "_vbdkit" ]; then _vbdkit "$@"; else compdef _vbdkit vbdkit; fi`;
}

function fish(words: Words): string {
  const lines = words.commands.flatMap((command) => [
    `complete -c vbdkit -n __fish_use_subcommand -f -a ${command.name} -d "${command.summary.replaceAll('"', "")}"`,
    `complete -c vbdkit -n "__fish_seen_subcommand_from ${command.name}" -a "${wordsOf(command, words)}"`,
    ...(command.asks[0] === undefined
      ? []
      : [
          `complete -c vbdkit -n "__fish_seen_subcommand_from ${command.name}" -a "(vbdkit list --names 2>/dev/null)"`,
        ]),
  ]);
  const values = [...words.values].map(
    ([option, choices]) => `complete -c vbdkit -l ${option.slice(2)} -x -a "${choices.join(" ")}"`,
  );
  return ["# fish completion for vbdkit", ...lines, ...values].join("\n");
}

/** What may follow a command, besides files. */
function wordsOf(command: Words["commands"][number], words: Words): string {
  const takesDisk = ["serve", "info", "copy", "bench", "test", "drivers", "help"].includes(
    command.name,
  );
  const filters = ["filters", "help"].includes(command.name) ? words.filters : [];
  return [...command.words, ...(takesDisk ? words.drivers : []), ...filters].join(" ");
}
