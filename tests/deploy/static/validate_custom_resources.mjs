// Checks objects of other people's kinds against the schemas of their releases: node validate_custom_resources.mjs TOOLS FILE
// Prints "checked KIND/NAME" for each, "unknown KIND/NAME" for a kind without a schema here, and fails at an invalid one.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [tools, file] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${tools}/package.json`));
const yaml = require("js-yaml");
const packages = {
  "keda.sh": "keda",
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
  "cert-manager.io": "cert-manager",
};
let failed = false;
for (const object of yaml.loadAll(readFileSync(file, "utf8")).filter(Boolean)) {
  const [group, version] = object.apiVersion.split("/");
  const name = `${object.kind}/${object.metadata.name}`;
  if (version === undefined || (!group.includes(".") || group.endsWith("k8s.io")) && !(group in packages)) continue;
  if (!(group in packages)) {
    console.log(`unknown ${name}`);
    failed = true;
    continue;
  }
  const folder = `${tools}/node_modules/@kubernetes-models/${packages[group]}`;
  const kinds = await import(pathToFileURL(`${folder}/${group}/${version}/index.js`));
  const kind = kinds[object.kind] ?? kinds.default?.[object.kind];
  try {
    if (kind === undefined) throw new Error("no such kind in this release");
    new kind(object).validate();
    console.log(`checked ${name}`);
  } catch (error) {
    console.log(`invalid ${name}: ${error.message}`);
    failed = true;
  }
}
process.exit(failed ? 1 : 0);
