/** A queue of objects that carry their own link: pushing and shifting allocate nothing. */
export interface Linked<T> {
  next: T | undefined;
}

export class Fifo<T extends Linked<T>> {
  #head: T | undefined = undefined;
  #tail: T | undefined = undefined;

  get empty(): boolean {
    return this.#head === undefined;
  }

  peek(): T | undefined {
    return this.#head;
  }

  push(item: T): void {
    item.next = undefined;
    if (this.#tail === undefined) this.#head = item;
    else this.#tail.next = item;
    this.#tail = item;
  }

  /** Puts an item back at the front: it stays next in order. */
  unshift(item: T): void {
    item.next = this.#head;
    this.#head = item;
    if (this.#tail === undefined) this.#tail = item;
  }

  /** Takes everything up to and including `last`, which stays linked to one another. */
  shiftThrough(last: T): void {
    this.#head = last.next;
    if (this.#head === undefined) this.#tail = undefined;
    last.next = undefined;
  }

  /** In order; the queue is not to change meanwhile. */
  *[Symbol.iterator](): Generator<T> {
    for (let item = this.#head; item !== undefined; item = item.next) yield item;
  }

  shift(): T | undefined {
    const item = this.#head;
    if (item === undefined) return undefined;
    this.#head = item.next;
    if (this.#head === undefined) this.#tail = undefined;
    item.next = undefined;
    return item;
  }
}
