import prettier from "eslint-config-prettier";
import vue from "eslint-plugin-vue";
import globals from "globals";
import typescript from "typescript-eslint";

export default typescript.config(
  { ignores: ["dist/", "**/openapi.d.ts"] },
  typescript.configs.recommended,
  vue.configs["flat/recommended"],
  {
    languageOptions: {
      globals: globals.browser,
      parserOptions: { parser: typescript.parser, extraFileExtensions: [".vue"] },
    },
    rules: {
      eqeqeq: "error",
      // The compiler checks names, and knows the types of the browser.
      "no-undef": "off",
      // Names such as Cover and Icon cannot clash: HTML's elements are lower case in templates.
      "vue/multi-word-component-names": "off",
    },
  },
  prettier,
);
