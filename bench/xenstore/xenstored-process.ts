/** Our xenstore daemon as a process of its own, which listens at the path it is given. */
import { XenStoreDaemon } from "../../src/xen/xenstore/daemon.ts";

const [path] = process.argv.slice(2);
const daemon = new XenStoreDaemon();
await daemon.listen(path!);
process.send?.("listening");
