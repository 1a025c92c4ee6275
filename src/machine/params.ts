import type { StoreSpec } from "../store/block-store.ts";

/** The params node of a disk that has a spec: what a person would type. */
export function paramsOf(spec: StoreSpec): string {
  const parameters = Object.entries(spec.parameters).map(([name, value]) => `${name}=${value}`);
  return [spec.driver, ...parameters].join(" ");
}
