export { ApiError } from "./api-error.js";
export { Backline } from "./backline.js";
export { webApiSdk } from "./web-api-sdk.js";
