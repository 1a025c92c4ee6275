/**
 * What any backend of a vbd must do, as tests of node:test: a scripted frontend boots before it as each of the drivers
 * of twenty years does, breaks every rule there is, and leaves in every way a domain can.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  BLKIF_OP_DISCARD,
  BLKIF_OP_FLUSH_DISKCACHE,
  BLKIF_OP_READ,
  BLKIF_OP_WRITE,
  BLKIF_OP_WRITE_BARRIER,
  BLKIF_RSP_OKAY,
} from "../wire/blkif.ts";
import {
  assertPattern,
  BackendBench,
  type BackendSuiteOptions,
  fillPattern,
  type OpenedBackend,
  SECTORS_PER_PAGE,
  type Spoken,
  transferAll,
} from "./backend-bench.ts";
import { backendLife } from "./backend-suite-life.ts";
import { backendRules } from "./backend-suite-rules.ts";
import { largeSectors } from "./backend-suite-sectors.ts";
import { type FrontendDialect, frontendDialects } from "./frontend-dialects.ts";
import { shows } from "./shows.ts";

/** A test that takes longer hangs. */
const TIMEOUT_MILLISECONDS = 30_000;

/** Registers one test of a suite, which has a bench of its own. */
export type BackendTest = (
  rows: readonly string[],
  sentence: string,
  body: (bench: BackendBench) => Promise<unknown>,
  /** The vbd, if not what the options open. */
  open?: () => Promise<OpenedBackend>,
) => void;

export function backendSuite(name: string, options: BackendSuiteOptions): void {
  const register: BackendTest = (rows, sentence, body, open = () => options.open()) => {
    const run = shows(rows, async () => {
      await using bench = new BackendBench(await open());
      return await body(bench);
    });
    test(`${name} ${sentence}`, { timeout: TIMEOUT_MILLISECONDS }, run);
  };
  for (const dialect of frontendDialects) {
    register(dialect.rows, `serves ${dialect.name}, and once more when it comes back`, (bench) =>
      boots(bench, dialect, options),
    );
  }
  for (const dialect of options.largeSectors?.dialects ?? []) {
    register(
      ["4.5.1", "1.15"],
      `has sectors of 4096 bytes for a guest that counts as ${dialect} says`,
      (bench) => largeSectors(bench, dialect),
      () => options.largeSectors!.open(dialect),
    );
  }
  backendRules(register, options);
  backendLife(register, options);
}

/** Two boots of one driver: the second finds what the first has written. False where the backend did not offer all that
 * the driver uses. */
async function boots(
  bench: BackendBench,
  dialect: FrontendDialect,
  options: BackendSuiteOptions,
): Promise<boolean> {
  let whole = options.readOnly !== true;
  const remembers = options.readOnly !== true && options.forgets !== true;
  for (let boot = 0; boot < 2; boot++) {
    const spoken = await bench.speak(dialect);
    const { frontend, maxSegments } = spoken;
    const size = (await frontend.backendNumber("sectors")) * 512;
    assert.ok(size >= 2 ** 20, `sectors says ${size} bytes`);
    const all = frontend.bytes(0, maxSegments * 2);
    if (options.readOnly !== true && boot === 0) {
      fillPattern(all, 1);
      await transferAll(spoken, BLKIF_OP_WRITE, 64, maxSegments * 2);
      frontend.assertSecondSlot();
      whole = (await order(spoken)) && spoken.whole;
    }
    all.fill(0xee);
    await transferAll(spoken, BLKIF_OP_READ, 64, maxSegments * 2);
    if (remembers) assertPattern(all, 1, `boot ${boot}`);
    // The last page of the disk, and nothing beyond.
    const last = Math.floor(size / 4096) * SECTORS_PER_PAGE - SECTORS_PER_PAGE;
    await transferAll(spoken, BLKIF_OP_READ, last, 1);
    if (options.readOnly !== true && !(await discard(spoken))) whole = false;
    if (boot === 0) await goRound(spoken);
    await goodbye(spoken);
    bench.assertNothingHeld(frontend);
    await frontend.become(1);
  }
  if (options.complete === true) assert.ok(whole, "something that the driver uses is not offered");
  return whole;
}

/** More requests than the ring has slots: where the two disagree about its size, one of them loses its way. */
async function goRound({ frontend }: Spoken): Promise<void> {
  for (let left = frontend.ring.size; left >= 0; left--) {
    assert.equal(await frontend.status(frontend.transfer(BLKIF_OP_READ, 0, 1)), BLKIF_RSP_OKAY);
  }
}

/** Makes data durable as the driver does; false where the backend does not offer it. */
async function order({ dialect, frontend, maxSegments }: Spoken): Promise<boolean> {
  const flush = (await frontend.backendKey("feature-flush-cache")) === "1";
  const barrier = (await frontend.backendKey("feature-barrier")) === "1";
  if (dialect.ordered === "flush" && flush) {
    const request = frontend.request(BLKIF_OP_FLUSH_DISKCACHE);
    assert.equal(await frontend.status(request), BLKIF_RSP_OKAY, "a flush");
  } else if (dialect.ordered === "barrier" && barrier) {
    const request = frontend.transfer(BLKIF_OP_WRITE_BARRIER, 64, 1);
    assert.equal(await frontend.status(request), BLKIF_RSP_OKAY, "a barrier with data");
  } else if (dialect.ordered === "indirect barrier" && barrier && maxSegments > 11) {
    const request = frontend.indirect(BLKIF_OP_WRITE_BARRIER, 64, maxSegments);
    request.handle = dialect.handle;
    assert.equal(await frontend.status(request), BLKIF_RSP_OKAY, "a barrier within INDIRECT");
  } else return dialect.ordered === "none";
  return true;
}

async function discard({ dialect, frontend }: Spoken): Promise<boolean> {
  if (!dialect.discards) return true;
  if ((await frontend.backendKey("feature-discard")) !== "1") return false;
  const granularity = await frontend.backendNumber("discard-granularity", 512);
  const count = Math.max(8, granularity / 512);
  const sector = Math.ceil(1024 / count) * count;
  const request = frontend.request(BLKIF_OP_DISCARD, {
    sectorLow: sector,
    discardSectorsLow: count,
  });
  assert.equal(await frontend.status(request), BLKIF_RSP_OKAY, "a discard");
  return true;
}

/** GRUB and OVMF write Closed at once and wait to see it. */
async function goodbye({ dialect, frontend }: Spoken): Promise<void> {
  if (dialect.goodbye === "closing") {
    await frontend.close();
    return;
  }
  await frontend.become(6);
  await frontend.backendIs(6);
}
