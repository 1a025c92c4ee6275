/** What `vbdkit serve` says when it serves: what there is, what was negotiated, and things to try that work as pasted. */
import { formatSize } from "../util/size.ts";
import { quote } from "./disks.ts";
import { paint, table } from "./output.ts";
import type { ServedDiskInfo, ServerInfo } from "./server-info.ts";

export function banner(info: ServerInfo): string {
  const uri = quote(info.uri);
  const store = `XENSTORED_PATH=${quote(info.xenstoreSocket)}`;
  return [
    ...info.disks.flatMap(describeDisk),
    "",
    "Try, in another terminal:",
    table(
      [
        [`nbdinfo ${uri}`, "what an NBD client sees"],
        [`nbdcopy --progress ${uri} copy.img`, "copy it"],
        [`qemu-img info ${uri}`, "what QEMU sees"],
        [`${store} xenstore-ls -f`, "both drivers' nodes"],
        [`${vbdkit()} info ${quote(info.directory)}`, "ring, grants and counters"],
        [`${vbdkit()} top ${quote(info.directory)}`, "what goes on, until q"],
      ].map(([command, why]) => [`  ${command}`, paint("dim", `# ${why}`)]),
    ),
    "",
    "Ctrl-C stops it.",
  ].join("\n");
}

function describeDisk({ disk, vdev, uri, store, attachment }: ServedDiskInfo): string[] {
  const { negotiated, link, backend } = attachment;
  const size = `${formatSize(store.size)}${store.readOnly ? ", read-only" : ""}`;
  const features = [
    negotiated.persistent && "persistent grants",
    negotiated.flush && "flush",
    negotiated.discard && "discard",
  ];
  const ring = [
    `${negotiated.ringPages} ${negotiated.ringPages === 1 ? "page" : "pages"}, ${negotiated.ringSlots} slots`,
    `${negotiated.maxSegments} segments${negotiated.indirect ? " (indirect)" : ""}`,
    ...features.filter((feature) => feature !== false),
    negotiated.protocol,
  ];
  const rows = [
    ["uri", paint("cyan", uri)],
    ["engine", `${backend.store.engine ?? "none"}, backend in ${places[link]}`],
    ["ring", ring.join(", ")],
  ];
  return [paint("bold", `${vdev}  ${disk}  ${size}`), table(rows, "  ")];
}

const places = {
  thread: "this thread",
  worker: "a worker",
  process: "a process of its own",
} as const;

/** How this program was started, so that the commands shown work as pasted. */
function vbdkit(): string {
  if (process.env.npm_lifecycle_event === "start") return "node bin/vbdkit.js";
  return process.env.npm_command === "exec" ? "npx vbdkit" : "vbdkit";
}
