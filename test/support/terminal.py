"""Runs a command in a terminal of its own and, once it has printed a word, types Ctrl-C: terminal.py WORD COMMAND...

What the command prints is copied to standard output; the exit code is the command's, or 99 where it does not end.
"""

import os
import pty
import select
import sys
import time

word = sys.argv[1].encode()
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
text = b""
typed = False
end = time.monotonic() + 60
while time.monotonic() < end:
    if not select.select([terminal], [], [], 0.1)[0]:
        continue
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b""
    if data == b"":
        break
    text += data
    os.write(1, data)
    if not typed and word in text:
        os.write(terminal, b"\x03")
        typed = True
else:
    os.kill(pid, 9)
    sys.exit(99)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
