/** Published, and so kept with the suites. */
export { ScriptedBackend } from "../../src/testing/scripted-backend.ts";
