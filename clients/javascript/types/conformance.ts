// Checks that the sources have the declared types. It is not published.
import * as source from "../src/index.js";
import type * as declared from "./index.d.ts";

source satisfies typeof declared;
({}) as Exclude<keyof typeof source, keyof typeof declared> satisfies never;
