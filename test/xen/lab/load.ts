/** fio's verified writes in a guest: each block carries its checksum, and is read back and compared. */
import type { Guest } from "./guest.ts";

/** Each disk of a pass; a pass should take seconds. */
const MEBIBYTES = 4;
const WAIT_LIMIT_SECONDS = 600;

/** Writes to a disk in passes, each other than the one before, until it is ended. */
export class GuestLoad {
  readonly #guest: Guest;
  readonly #end: string;
  readonly #passes: Promise<string>;

  private constructor(guest: Guest, disk: string) {
    this.#guest = guest;
    this.#end = `/run/end${disk.replaceAll("/", "-")}`;
    this.#passes = guest.check(
      `rm -f ${this.#end} ${this.#end}.pass; pass=0
      until [ -e ${this.#end} ]; do
        pass=$((pass + 1))
        ${fio(disk, "$pass")} --iodepth=16 --direct=1 >/dev/null || exit 1
        echo $pass >${this.#end}.pass
      done
      echo $pass`,
      { timeout: WAIT_LIMIT_SECONDS },
    );
    // Whoever ends it hears of it.
    this.#passes.catch(() => {});
  }

  /** Resolves when a first pass has ended, and a second writes. */
  static async start(guest: Guest, disk: string): Promise<GuestLoad> {
    const load = new GuestLoad(guest, disk);
    await load.pass();
    return load;
  }

  /** Waits until a pass more has ended. Rejects where blocks are not as they were written. */
  async pass(): Promise<void> {
    const file = `${this.#end}.pass`;
    const next = this.#guest.check(
      `before=$(cat ${file} 2>/dev/null); until [ "$(cat ${file} 2>/dev/null)" != "$before" ]; do sleep 0.1; done`,
      { timeout: WAIT_LIMIT_SECONDS },
    );
    await Promise.race([next, this.#passes]);
  }

  /** Ends it, and resolves with words of sh that look for all that it wrote last in the image at dom0's `file`. */
  async end(): Promise<(file: string) => string> {
    await this.#guest.check(`touch ${this.#end}`);
    const pass = (await this.#passes).trim();
    return (file) => `${fio(file, pass)} --verify_only`;
  }
}

/** fio writing 4 KiB at a time all over the beginning of a disk, and reading it back. It fails at the first block that is
 * not as it was written. */
function fio(disk: string, pass: string): string {
  return (
    `cd /run && fio --name=load --filename=${disk} --ioengine=libaio --bs=4k --rw=randwrite --randseed=${pass} ` +
    `--size=${MEBIBYTES}M --verify=crc32c --verify_fatal=1 --output-format=terse`
  );
}
