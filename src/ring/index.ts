/** The two ends of a shared ring. */
export * from "./back-ring.ts";
export * from "./front-ring.ts";
