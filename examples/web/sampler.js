// Samples a class-conditional STARFlow from a bundle, token by token, as docs/bundle.md says.
import * as ort from "./ort/ort.wasm.min.mjs";
import { normalNumbers } from "./normal_numbers.js";

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int8: Int8Array };
const size = (shape) => shape.reduce((product, side) => product * side, 1);
const zeros = ({ dtype, shape }) => new ort.Tensor(dtype, new ARRAYS[dtype](size(shape)), shape);

async function bytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: status ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** One flow block: its graph, and what it reads and updates. */
class FlowBlock {
  constructor(session, block, graph) {
    [this.session, this.block, this.graph] = [session, block, graph];
    this.condition = graph.inputs.find(({ role }) => role === "condition");
    this.buffers = Object.fromEntries(
      graph.inputs.filter(({ shape }) => !shape.includes("S")).map((input) => [input.name, zeros(input)]),
    );
  }

  fill(name, values) {
    const data = this.buffers[name]?.data;
    if (data) for (let index = 0; index < data.length; index++) data[index] = values[index % values.length];
  }

  /** A run over tokens at the buffers' position: previous [batch, count, width] to x of the same shape. */
  async run(previous, condition) {
    const feeds = { ...this.buffers, previous };
    if (this.condition) {
      const shape = this.condition.shape.map((side) => (side === "S" ? previous.dims[1] : side));
      feeds.condition = condition ?? zeros({ dtype: this.condition.dtype, shape });
    }
    const made = await this.session.run(feeds);
    for (const { name, updated_by: update, role } of this.graph.inputs) {
      if (update && role !== "position") this.buffers[name] = made[update]; // we count
    }
    return made.x;
  }

  /** z [tokens, width] of one image, in the order of the block, to x. */
  async decode(z, width, condition) {
    const { prefix, first_token: first, capacity } = this.block;
    const tokens = z.length / width;
    this.fill("noise", [0]);
    this.buffers.noise.data.set(z.subarray(first * width), prefix * width);
    const position = this.buffers.position.data;
    position[0] = 0n;
    if (prefix) await this.run(zeros({ dtype: "float32", shape: [1, prefix, width] }), condition);
    let last = new ort.Tensor("float32", z.slice(0, width), [1, 1, width]);
    for (let token = first; token < tokens; token++) {
      position[0] = BigInt(prefix + token - first);
      last = await this.run(last);
    }
    const x = z.slice();
    x.set(this.buffers.samples.data.subarray(prefix * width, capacity * width), first * width);
    return x;
  }
}

const reversed = (x, width) => {
  const turned = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) turned.set(x.subarray(start, start + width), x.length - start - width);
  return turned;
};

export class Sampler {
  /** Loads a bundle that has graphs of batch size 1. */
  static async open(url) {
    const whole = JSON.parse(new TextDecoder().decode(await bytes(`${url}/manifest.json`)));
    const manifest = [whole, ...(whole.batches ?? []).map((other) => ({ ...whole, ...other }))].find(({ batch }) => batch === 1);
    const patches = manifest?.blocks.some(({ patch }) => patch);
    if (!manifest || manifest.conditioning.kind !== "class-token" || manifest.prior || manifest.autoencoder || patches)
      throw new Error("this page takes STARFlows of pixels and classes with one patch size, exported with --batch 1");
    const variant = manifest.variants.find(({ lowering }) => lowering === "cpu");
    const weights = await bytes(`${url}/${variant.weights.path}`);
    const path = variant.weights.path.replace(/^graphs\//, ""); // as the graphs call it
    const blocks = [];
    for (const graph of variant.graphs) {
      const options = { externalData: [{ path, data: weights }], executionProviders: ["wasm"] };
      const session = await ort.InferenceSession.create(await bytes(`${url}/${graph.file.path}`), options);
      blocks.push(new FlowBlock(session, manifest.blocks[graph.block], graph));
    }
    return new Sampler(manifest, blocks.sort((one, other) => other.block.index - one.block.index));
  }

  constructor(manifest, blocks) {
    [this.manifest, this.blocks] = [manifest, blocks];
  }

  /** The data of an image, a Float32Array [channels, height, width]; `onBlock` gets it after each flow block. */
  async sample(label, guidance, seed, onBlock = () => {}) {
    const { model, conditioning } = this.manifest;
    const width = model.token_dim;
    let x = this.#tokens(normalNumbers(seed, 0, size(model.data_shape)));
    for (const block of this.blocks) {
      const { rows, prefix, reversed: turn } = block.block;
      const labels = Array.from({ length: rows }, (_, row) => (row === 0 ? label : conditioning.num_classes));
      block.fill("label", labels.map(BigInt));
      for (const name of ["guidance", "guidance_scale", "guidance_shift"]) block.fill(name, [guidance]);
      block.fill("inverse_temperature", [1]);
      let condition;
      if (prefix) {
        condition = new ort.Tensor("float32", new Float32Array(rows * conditioning.width), [rows, 1, conditioning.width]);
        labels.forEach((chosen, row) => (condition.data[row * conditioning.width + chosen] = 1));
      }
      const z = turn ? reversed(x, width) : x;
      const made = await block.decode(z, width, condition);
      x = turn ? reversed(made, width) : made;
      await onBlock(this.#image(x));
    }
    return this.#image(x);
  }

  /** Calls `place(value of the image, value of the tokens)` for each value. */
  #each(place) {
    const { data_shape: [channels, height, width], patch_size: patch, patch_order: order, noise_layout: layout } = this.manifest.model;
    if (layout !== "image") throw new Error(`noise as ${layout} is not for this page`);
    let token = 0;
    for (let top = 0; top < height; top += patch)
      for (let left = 0; left < width; left += patch)
        for (let a = 0; a < channels * patch * patch; a++) {
          const channel = order === "row-column-channel" ? a % channels : Math.floor(a / (patch * patch));
          const inside = order === "row-column-channel" ? Math.floor(a / channels) : a % (patch * patch);
          const [row, column] = [top + Math.floor(inside / patch), left + (inside % patch)];
          place((channel * height + row) * width + column, token++);
        }
  }

  #tokens(image) {
    const tokens = new Float32Array(image.length);
    this.#each((from, to) => (tokens[to] = image[from]));
    return tokens;
  }

  #image(tokens) {
    const image = new Float32Array(tokens.length);
    this.#each((to, from) => (image[to] = tokens[from]));
    return image;
  }
}
