/** URL of a module beside `from`, in sources run unbuilt (`.ts`) and in the build (`.js`). The one place where a
 * worker or child process gets the name of its module. */
export function siblingModule(from: string, name: string): URL {
  return new URL(`${name}${from.endsWith(".ts") ? ".ts" : ".js"}`, from);
}
