// Asks transformers.js: a request as JSON on stdin, a reply as JSON on the last line of stdout (engine_process.py). The
// folder with the packages of node is the first argument.

import { createRequire } from "node:module";
import { join } from "node:path";
import { readFileSync } from "node:fs";

process.on("uncaughtException", (error) => {
    console.error(`${error.name}: ${error.message}`.replaceAll("\n", " "));
    process.exit(1);
});
const require = createRequire(join(process.argv[2], "package.json"));
const library = require("@huggingface/transformers");
const request = JSON.parse(readFileSync(0, "utf-8"));
library.env.allowRemoteModels = false;
const model = await library[request.auto_class].from_pretrained(request.export);
const images = request.questions.some((one) => one.rgb !== undefined);
const reader = await library[images ? "AutoProcessor" : "AutoTokenizer"].from_pretrained(request.export);

const replies = [], took = [];
for (const one of request.questions) {
    const began = performance.now();
    let inputs;
    if (images) {
        const pixels = new Uint8ClampedArray(Buffer.from(one.rgb, "base64"));
        inputs = { pixel_values: (await reader(new library.RawImage(pixels, one.width, one.height, 3))).pixel_values };
    } else {
        inputs = reader([one.text], { text_pair: one.pair && [one.pair], padding: true, truncation: true });
    }
    const { logits } = await model(inputs);
    took.push(performance.now() - began);
    const ids = images ? null : Array.from(inputs.input_ids.data, Number);
    replies.push({ prompt_ids: ids, logits: logits.tolist()[0] });
}
const milliseconds = took.sort((one, other) => one - other)[Math.floor(took.length / 2)];
console.log(JSON.stringify({ engine: "transformers.js", version: library.env.version, milliseconds, replies }));
