/** vbdkit daemon that goes on as another user: what only root may is open by then, and a disk goes from one user to another
 * under a running frontend. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Lab, type LabProcess } from "../lab.ts";

let lab: Lab;
/** A process starts slowly there. */
const slow = { timeout: 240 };
const USER = 900;

before(async () => {
  lab = await Lab.boot();
  await lab.check(
    `modprobe xen-blkfront
    echo 'vbdkit:x:${USER}:${USER}::/:/bin/false' >>/etc/passwd
    truncate -s 16M /tmp/a.img; chown ${USER} /tmp/a.img`,
  );
});
after(async () => {
  await lab[Symbol.asyncDispose]();
});

/** Resolves when it serves. */
async function startDaemon(options: string): Promise<LabProcess> {
  const started = await lab.start(`exec vbdkit daemon ${options}`);
  for (let tries = 0; !started.output.stdout.includes("serves vbd3 of domain 0"); tries++) {
    assert.ok(tries < 2400, `the daemon says only: ${started.output.stderr}`);
    await sleep(100);
  }
  return started;
}

/** The process that has the image, which it may open after it began to serve. */
const server = `
  find_server() { ls -l /proc/[0-9]*/fd 2>/dev/null |
    awk '/^.proc/ {gsub(/[^0-9]/, ""); p = $0} /a.img/ {print p}'; }
  until [ -n "$(find_server)" ]; do sleep 0.2; done
  server=$(find_server)`;

/** Writes through the disk, and compares; then who serves it, and whose its journals are. */
async function usersOf(): Promise<readonly string[]> {
  const printed = await lab.check(
    `set -e
    until [ -b /dev/xvdb ]; do sleep 0.1; done
    dd if=/dev/urandom of=/tmp/random bs=64k count=16
    dd if=/tmp/random of=/dev/xvdb bs=64k oflag=direct
    cmp -n 1048576 /tmp/random /tmp/a.img
    ${server}
    awk '/^Uid:/ {print $2 "," $3 "," $4}' /proc/$server/status
    stat -c %u /run/vbdkit/journals /run/vbdkit/journals/*`,
    slow,
  );
  return printed.trim().split("\n");
}

test("a disk that root served is served by another user, in one process and in one for each guest", async () => {
  const users = [`${USER},${USER},${USER}`, `${USER}`, `${USER}`];
  const root = await startDaemon("");
  // Pages that are not kept are copied.
  const attach = "vbdkit attach 0 'vdev=xvdb,target=/tmp/a.img' --backend feature_persistent=0";
  await lab.check(attach, slow);
  assert.deepEqual(await usersOf(), ["0,0,0", "0", "0"]);
  root.signal("TERM");
  assert.equal((await root.outcome).status, 0);

  const shared = await startDaemon("--shared --user vbdkit");
  assert.deepEqual(await usersOf(), users);
  await lab.check(`${server}; kill -9 $server`);
  await shared.outcome;

  const apart = await startDaemon("--user vbdkit");
  assert.deepEqual(await usersOf(), users);
  await lab.check("vbdkit detach 0 xvdb; ls /run/vbdkit/journals", slow);
  apart.signal("TERM");
  assert.equal((await apart.outcome).status, 0);
});
