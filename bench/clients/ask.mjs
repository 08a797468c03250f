// Asks every question of a file whole and streamed, all at once, with whichever of OpenAI's Node clients is installed.
//
//     node ask.mjs QUESTIONS.json

import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI();
const questions = JSON.parse(readFileSync(process.argv[2], "utf8"));

async function whole(body) {
  const { message } = (await client.chat.completions.create(body)).choices[0];
  const calls = (message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]);
  return { text: message.content ?? "", calls };
}

async function stream(body) {
  let text = "";
  const calls = [];
  for await (const piece of await client.chat.completions.create({ ...body, stream: true })) {
    const delta = piece.choices[0]?.delta ?? {};
    text += delta.content ?? "";
    for (const part of delta.tool_calls ?? []) {
      const call = (calls[part.index] ??= ["", ""]);
      call[0] += part.function?.name ?? "";
      call[1] += part.function?.arguments ?? "";
    }
  }
  return { text, calls };
}

async function answer({ model, name, body }, streamed) {
  try {
    return { model, name, streamed, ...(await (streamed ? stream : whole)(body)), error: "" };
  } catch (error) {
    return { model, name, streamed, text: "", calls: [], error: String(error) };
  }
}

const asked = questions.flatMap((question) => [answer(question, false), answer(question, true)]);
console.log(JSON.stringify(await Promise.all(asked)));
