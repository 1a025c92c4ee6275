/** For those who write a driver, a filter or a side of a ring: suites to pass, doubles to be tried with. */

export type { BackendSuiteOptions, OpenedBackend } from "./backend-bench.ts";
export { type BackendDialect, backendDialects } from "./backend-dialects.ts";
export { backendSuite } from "./backend-suite.ts";
export { type DomainSuiteOptions, domainSuite, type OpenedDomains } from "./domain-suite.ts";
export { FaultyStore } from "./faulty-store.ts";
export { ForgetfulStore } from "./forgetful-store.ts";
export { type FrontendDialect, frontendDialects } from "./frontend-dialects.ts";
export { type FrontendSuiteOptions, frontendSuite, type OpenedFrontend } from "./frontend-suite.ts";
export { RequestRunner, type RequestShape, WatchedRequest } from "./requests.ts";
export { ScriptedBackend, type ServedRing } from "./scripted-backend.ts";
export { type FrontendOffer, ScriptedFrontend, type ScriptedRing } from "./scripted-frontend.ts";
export { type ShownRows, shows } from "./shows.ts";
export { ShufflingStore } from "./shuffling-store.ts";
export { runModel, type StoreModelOptions } from "./store-model.ts";
export { type OpenedStore, type StoreSuiteOptions, storeSuite } from "./store-suite.ts";
export { type VbdPair, type VbdPairOptions, vbdPair } from "./vbd-pair.ts";
