/** Tables of numbers: numbers stand right, and a table that is wider than the terminal leaves its least columns out. */

export interface Column<Row> {
  readonly title: string;
  /** Cells at least; a number that grows does not move its neighbours at once. */
  readonly width?: number;
  /** Words stand left. */
  readonly left?: true;
  /** The column with the largest goes first where room is short; 0, the default, never goes. */
  readonly expendable?: number;
  readonly cell: (row: Row) => string | number;
}

const GAP = "  ";

/** A line of titles and a line for each row, none longer than `width` cells where that can be. */
export function columnLines<Row>(
  columns: readonly Column<Row>[],
  rows: readonly Row[],
  width: number = Number.POSITIVE_INFINITY,
): string[] {
  const shown = columns.map((column) => {
    const cells = [column.title, ...rows.map((row) => String(column.cell(row)))];
    const widest = Math.max(column.width ?? 0, ...cells.map((cell) => cell.length));
    return { column, cells, widest };
  });
  const total = () => shown.reduce((sum, { widest }) => sum + widest + GAP.length, -GAP.length);
  while (total() > width) {
    const least = Math.max(...shown.map(({ column }) => column.expendable ?? 0));
    if (least === 0) break;
    shown.splice(
      shown.findIndex(({ column }) => column.expendable === least),
      1,
    );
  }
  return [undefined, ...rows].map((_, line) =>
    shown
      .map(({ column, cells, widest }) =>
        column.left ? cells[line]!.padEnd(widest) : cells[line]!.padStart(widest),
      )
      .join(GAP)
      .trimEnd(),
  );
}
