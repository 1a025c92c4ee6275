/**
 * The children of a node by name, in the order in which they came.
 *
 * Invariant: copies share their names for as long as nobody comes or goes, so that a change below one of a thousand
 * children copies a list of nodes and no table.
 */

/** Places of children that went, before the list is made anew without them. */
const MAX_GAPS = 32;
/** Of those without children, which most nodes are. */
const NO_PLACES = new Map<string, number>();

export class Children<Child> {
  /** Where each is in the list. */
  #places: Map<string, number> = NO_PLACES;
  #list: (Child | undefined)[] = [];
  /** The table is others' too. */
  #shared = true;

  copy(): Children<Child> {
    this.#shared = true;
    const copy = new Children<Child>();
    copy.#places = this.#places;
    copy.#list = this.#list.slice();
    return copy;
  }

  get(name: string): Child | undefined {
    const place = this.#places.get(name);
    return place === undefined ? undefined : this.#list[place];
  }

  has(name: string): boolean {
    return this.#places.has(name);
  }

  keys(): MapIterator<string> {
    return this.#places.keys();
  }

  *[Symbol.iterator](): Generator<[string, Child], void> {
    for (const [name, place] of this.#places) yield [name, this.#list[place] as Child];
  }

  /** In the place of the one of that name, or as the last. */
  set(name: string, child: Child): void {
    const place = this.#places.get(name);
    if (place !== undefined) {
      this.#list[place] = child;
      return;
    }
    this.#ownPlaces().set(name, this.#list.length);
    this.#list.push(child);
  }

  delete(name: string): void {
    const place = this.#places.get(name);
    if (place === undefined) return;
    this.#ownPlaces().delete(name);
    this.#list[place] = undefined;
    if (this.#list.length - this.#places.size > MAX_GAPS + this.#places.size) this.#closeGaps();
  }

  #ownPlaces(): Map<string, number> {
    if (this.#shared) {
      this.#places = new Map(this.#places);
      this.#shared = false;
    }
    return this.#places;
  }

  #closeGaps(): void {
    const entries = [...this];
    this.#places = new Map(entries.map(([name], place) => [name, place]));
    this.#list = entries.map(([, child]) => child);
  }
}
