/** What the daemon says of itself while somebody asks for it (CONTROL log, CONTROL print). */
import { decodeXenStoreText, type XenStoreMessage } from "../../wire/xenstore.ts";

export class TraceLog {
  on = false;
  /** Takes lines; without it nothing is said. */
  sink: ((line: string) => void) | undefined;

  /** A request, and what became of it. */
  request(domid: number, { type, transactionId, payload }: XenStoreMessage, answer: string): void {
    if (!this.on || this.sink === undefined) return;
    const transaction = transactionId === 0 ? "" : ` in transaction ${transactionId}`;
    this.sink(
      `domain ${domid}: message ${type}${transaction} ${printable(decodeXenStoreText(payload))}: ${answer}`,
    );
  }

  print(text: string): void {
    this.sink?.(`control: ${printable(text)}`);
  }
}

/** Clients choose the bytes, and a terminal may read the line. */
function printable(text: string): string {
  return text.replaceAll(/[^ -~]/g, (character) => (character === "\0" ? " " : "?"));
}
