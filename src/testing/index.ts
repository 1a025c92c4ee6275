/** For those who write a driver, a filter or a side of a ring: suites to pass, doubles to be tried with. */
export { FaultyStore } from "./faulty-store.ts";
export { ForgetfulStore } from "./forgetful-store.ts";
export { RequestRunner, type RequestShape, WatchedRequest } from "./requests.ts";
export { runModel, type StoreModelOptions } from "./store-model.ts";
export { type OpenedStore, type StoreSuiteOptions, storeSuite } from "./store-suite.ts";
