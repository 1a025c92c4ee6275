/** Published, and so kept with the suites. */
export { ScriptedFrontend } from "../../src/testing/scripted-frontend.ts";
