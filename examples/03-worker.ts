/** The backend in a worker, as in a driver domain of its own: the disk is named by data and opened there. */
import { Machine, parseDisk } from "vbdkit";

await using machine = await Machine.start();
for (const link of ["thread", "worker"] as const) {
  await using disk = await machine.attach(parseDisk(["memory", "64M"]), { vdev: "xvda", link });
  const began = performance.now();
  const reads = Array.from({ length: 1000 }, (_, index) => disk.read(index * 4096, 4096));
  await Promise.all(reads);
  const seconds = (performance.now() - began) / 1000;
  console.log(`${link}: ${Math.round(1000 / seconds)} reads a second, with a promise each`);
}
