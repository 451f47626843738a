// The official client libraries for Node.js, driven by gated_streams.py.
//
//     node --input-type=module --eval "$(<clients.mjs)" NAME URL    # in the folder that has node_modules
//
// Reads lines `{"streamed", "history"}` and answers each with lines `{"text"}` while text arrives, then with one line
// `{"calls", "history"}`, where calls are pairs of name and arguments, or with `{"error"}`.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";

const SCHEMA = { type: "object", properties: { command: { type: "string" }, path: { type: "string" } } };
const NAMES = ["bash", "read_file"];

function anthropic(client) {
    return async (streamed, told, history) => {
        history ??= [{ role: "user", content: "go" }];
        const tools = NAMES.map((name) => ({ name, input_schema: SCHEMA }));
        const request = { model: "m", max_tokens: 100, messages: history, tools };
        let message;
        if (streamed) {
            const stream = client.messages.stream(request).on("text", told);
            message = await stream.finalMessage();
        } else {
            message = await client.messages.create(request);
            for (const block of message.content) told(block.text);
        }
        const made = message.content.filter((block) => block.type === "tool_use");
        assert.equal(message.stop_reason, made.length ? "tool_use" : "end_turn");
        const results = made.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: "ok" }));
        return {
            calls: made.map(({ name, input }) => [name, input]),
            history: [
                ...history,
                { role: "assistant", content: message.content },
                { role: "user", content: made.length ? results : "and now?" },
            ],
        };
    };
}

const SDKS = {
    async node_anthropic(url) {
        const { default: Anthropic } = await import("@anthropic-ai/sdk");
        return anthropic(new Anthropic({ baseURL: url, apiKey: "k", maxRetries: 0 }));
    },

    async node_anthropic_bedrock(url) {
        const { default: AnthropicBedrock } = await import("@anthropic-ai/bedrock-sdk");
        return anthropic(
            new AnthropicBedrock({
                baseURL: url,
                awsAccessKey: "k",
                awsSecretKey: "s",
                awsRegion: "us-east-1",
                maxRetries: 0,
            }),
        );
    },

    async node_openai_chat(url) {
        const { default: OpenAI } = await import("openai");
        const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "k", maxRetries: 0 });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", content: "go" }];
            const tools = NAMES.map((name) => ({ type: "function", function: { name, parameters: SCHEMA } }));
            const request = { model: "m", messages: history, tools };
            let choice;
            if (streamed) {
                const stream = client.chat.completions.stream(request).on("content", told);
                choice = (await stream.finalChatCompletion()).choices[0];
            } else {
                choice = (await client.chat.completions.create(request)).choices[0];
                told(choice.message.content);
            }
            const made = choice.message.tool_calls ?? [];
            assert.equal(choice.finish_reason, made.length ? "tool_calls" : "stop");
            const { parsed, ...said } = choice.message;
            const results = made.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "ok" }));
            return {
                calls: made.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
                history: [...history, said, ...(made.length ? results : [{ role: "user", content: "and now?" }])],
            };
        };
    },

    async node_openai_responses(url) {
        const { default: OpenAI } = await import("openai");
        const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "k", maxRetries: 0 });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", content: "go" }];
            const tools = NAMES.map((name) => ({ type: "function", name, parameters: SCHEMA, strict: false }));
            const request = { model: "m", input: history, tools };
            let response;
            if (streamed) {
                const items = [];
                const stream = client.responses.stream(request);
                for await (const event of stream) {
                    if (event.type === "response.output_text.delta") told(event.delta);
                    if (event.type === "response.output_item.done") items.push(event.item.id);
                }
                response = await stream.finalResponse();
                assert.deepEqual(items, response.output.map(({ id }) => id));
            } else {
                response = await client.responses.create(request);
                told(response.output_text);
            }
            const made = response.output.filter((item) => item.type === "function_call");
            const said = response.output.map(({ parsed_arguments, ...item }) => item);
            const results = made.map(({ call_id }) => ({ type: "function_call_output", call_id, output: "ok" }));
            return {
                calls: made.map((call) => [call.name, JSON.parse(call.arguments)]),
                history: [
                    ...history,
                    ...said,
                    ...(made.length ? results : [{ role: "user", content: "and now?" }]),
                ],
            };
        };
    },

    async node_google_genai(url) {
        const { GoogleGenAI } = await import("@google/genai");
        const client = new GoogleGenAI({ apiKey: "k", httpOptions: { baseUrl: url } });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", parts: [{ text: "go" }] }];
            const request = { model: "gemini-x", contents: history };
            const parts = [];
            const chunks = streamed
                ? await client.models.generateContentStream(request)
                : [await client.models.generateContent(request)];
            for await (const chunk of chunks) {
                for (const part of chunk.candidates?.[0]?.content?.parts ?? []) {
                    told(part.text);
                    parts.push(part);
                }
            }
            const made = parts.flatMap(({ functionCall }) => (functionCall?.name ? [functionCall] : []));
            const results = made.map(({ name }) => ({ functionResponse: { name, response: { result: "ok" } } }));
            return {
                calls: made.map(({ name, args }) => [name, args]),
                history: [
                    ...history,
                    { role: "model", parts },
                    { role: "user", parts: made.length ? results : [{ text: "and now?" }] },
                ],
            };
        };
    },

    async node_bedrock_converse(url) {
        const { BedrockRuntimeClient, ConverseCommand, ConverseStreamCommand } = await import(
            "@aws-sdk/client-bedrock-runtime"
        );
        const { NodeHttpHandler } = await import("@smithy/node-http-handler");
        const client = new BedrockRuntimeClient({
            endpoint: url,
            region: "us-east-1",
            credentials: { accessKeyId: "k", secretAccessKey: "s" },
            maxAttempts: 1,
            // Its own choice is HTTP/2, which it speaks without TLS from the first byte on.
            requestHandler: new NodeHttpHandler(),
        });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", content: [{ text: "go" }] }];
            const request = { modelId: "m", messages: history };
            let content;
            let stop;
            if (streamed) {
                const blocks = [];
                const { stream } = await client.send(new ConverseStreamCommand(request));
                for await (const { contentBlockStart: start, contentBlockDelta: part, messageStop } of stream) {
                    if (start) blocks[start.contentBlockIndex] = { toolUse: { ...start.start.toolUse, input: "" } };
                    if (part?.delta.text !== undefined) {
                        told(part.delta.text);
                        blocks[part.contentBlockIndex] ??= { text: "" };
                        blocks[part.contentBlockIndex].text += part.delta.text;
                    }
                    if (part?.delta.toolUse) blocks[part.contentBlockIndex].toolUse.input += part.delta.toolUse.input;
                    if (messageStop) stop = messageStop.stopReason;
                }
                content = blocks.filter(Boolean);
                for (const { toolUse } of content) if (toolUse) toolUse.input = JSON.parse(toolUse.input || "{}");
            } else {
                const answer = await client.send(new ConverseCommand(request));
                content = answer.output.message.content;
                stop = answer.stopReason;
                for (const block of content) told(block.text);
            }
            const made = content.flatMap(({ toolUse }) => (toolUse ? [toolUse] : []));
            assert.equal(stop, made.length ? "tool_use" : "end_turn");
            const results = made.map(({ toolUseId }) => ({ toolResult: { toolUseId, content: [{ text: "ok" }] } }));
            return {
                calls: made.map(({ name, input }) => [name, input]),
                history: [
                    ...history,
                    { role: "assistant", content },
                    { role: "user", content: made.length ? results : [{ text: "and now?" }] },
                ],
            };
        };
    },

    async node_cohere(url) {
        const { CohereClientV2 } = await import("cohere-ai");
        const client = new CohereClientV2({ token: "k", environment: url, maxRetries: 0 });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", content: "go" }];
            const request = { model: "m", messages: history };
            let text = "";
            let made = [];
            let finish;
            const hear = (piece) => {
                text += piece ?? "";
                told(piece);
            };
            if (streamed) {
                for await (const event of await client.chatStream(request)) {
                    if (event.type === "content-delta") hear(event.delta.message.content.text);
                    if (event.type === "tool-call-start") {
                        assert.equal(event.index, made.length);
                        made.push(event.delta.message.toolCalls);
                    }
                    if (event.type === "tool-call-delta") {
                        made[event.index].function.arguments += event.delta.message.toolCalls.function.arguments;
                    }
                    if (event.type === "message-end") finish = event.delta.finishReason;
                }
            } else {
                const answer = await client.chat(request);
                finish = answer.finishReason;
                for (const block of answer.message.content ?? []) hear(block.text);
                made = answer.message.toolCalls ?? [];
            }
            assert.equal(finish, made.length ? "TOOL_CALL" : "COMPLETE");
            const said = made.length ? { role: "assistant", toolCalls: made } : { role: "assistant", content: text };
            const results = made.map(({ id }) => ({ role: "tool", toolCallId: id, content: "ok" }));
            return {
                calls: made.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
                history: [...history, said, ...(made.length ? results : [{ role: "user", content: "and now?" }])],
            };
        };
    },

    async node_mistral(url) {
        const { Mistral } = await import("@mistralai/mistralai");
        const client = new Mistral({ apiKey: "k", serverURL: url, retryConfig: { strategy: "none" } });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", content: "go" }];
            const request = { model: "m", messages: history };
            let text = "";
            const made = [];
            let finish;
            const take = (choice, message) => {
                const piece = typeof message.content === "string" ? message.content : "";
                text += piece;
                told(piece);
                made.push(...(message.toolCalls ?? []));
                finish = choice.finishReason ?? finish;
            };
            if (streamed) {
                for await (const { data } of await client.chat.stream(request)) {
                    take(data.choices[0], data.choices[0].delta);
                }
            } else {
                const [choice] = (await client.chat.complete(request)).choices;
                take(choice, choice.message);
            }
            assert.equal(finish, made.length ? "tool_calls" : "stop");
            const said = { role: "assistant", content: text, ...(made.length ? { toolCalls: made } : {}) };
            const results = made.map((call) => ({
                role: "tool",
                toolCallId: call.id,
                name: call.function.name,
                content: "ok",
            }));
            return {
                calls: made.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
                history: [...history, said, ...(made.length ? results : [{ role: "user", content: "and now?" }])],
            };
        };
    },

    async node_ollama(url) {
        const { Ollama } = await import("ollama");
        const client = new Ollama({ host: url });
        return async (streamed, told, history) => {
            history ??= [{ role: "user", content: "go" }];
            const answers = await client.chat({ model: "m", messages: history, stream: streamed });
            let text = "";
            const made = [];
            for await (const { message } of streamed ? answers : [answers]) {
                text += message.content ?? "";
                told(message.content);
                made.push(...(message.tool_calls ?? []));
            }
            const results = made.map((call) => ({ role: "tool", tool_name: call.function.name, content: "ok" }));
            return {
                calls: made.map((call) => [call.function.name, call.function.arguments]),
                history: [
                    ...history,
                    { role: "assistant", content: text, tool_calls: made },
                    ...(made.length ? results : [{ role: "user", content: "and now?" }]),
                ],
            };
        };
    },
};

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
// With --eval, what follows the script are the arguments.
const [name, url] = process.argv.slice(-2);
const ask = await SDKS[name](url);
for await (const line of createInterface({ input: process.stdin })) {
    const { streamed, history } = JSON.parse(line);
    try {
        const answer = await ask(streamed, (text) => text && say({ text }), history ?? undefined);
        say(answer);
    } catch (error) {
        say({ error: error?.stack ?? String(error) });
    }
}
