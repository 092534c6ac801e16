// Asks a distilqa server about a passage, the way a program that stays up should:
//
//     node ask.mjs [--stream] HOST:PORT [PASSAGE QUESTION...]
//
// One call a question, or with --stream one for all. DISTILQA_TOKEN goes along as the bearer token.

import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const TIMEOUT_MS = 30_000;

const GRPC_RECEIVE_LIMIT = 4 * 1024 * 1024;

const PASSAGE = '🌊 The lighthouse – 49 metres high – was built by Renée Solberg in 1887.';
const QUESTIONS = ['Who built the lighthouse?', 'When was the lighthouse built?'];

const LOADING = { defaults: true, oneofs: true, longs: Number };

const types = protoLoader.loadSync('distilqa_protos/v1/question_answering.proto', {
  ...LOADING,
  includeDirs: ['protos', 'protos/third_party'].map((folder) =>
    fileURLToPath(new URL(`../../${folder}`, import.meta.url)),
  ),
});
const { QuestionAnswering } = grpc.loadPackageDefinition(types).distilqa.v1;

// google.rpc.RetryInfo, the one detail of a status that the server sends.
const { RetryInfo } = protoLoader.fromJSON(
  {
    nested: {
      RetryInfo: { fields: { retryDelay: { type: 'Duration', id: 1 } } },
      Duration: { fields: { seconds: { type: 'int64', id: 1 }, nanos: { type: 'int32', id: 2 } } },
    },
  },
  LOADING,
);

const OPTIONS = {
  // A peer that is gone without a word is noticed while a call waits for it. Without calls there is no need to ask.
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.keepalive_permit_without_calls': 0,
  // gRPC tries again by itself where the server did no work: UNAVAILABLE alone. No hedging: it doubles the load.
  'grpc.service_config': JSON.stringify({
    methodConfig: [
      {
        name: [{ service: 'distilqa.v1.QuestionAnswering' }],
        retryPolicy: {
          maxAttempts: 4,
          initialBackoff: '0.1s',
          maxBackoff: '2s',
          backoffMultiplier: 3,
          retryableStatusCodes: ['UNAVAILABLE'],
        },
      },
    ],
  }),
};

/** A client for as long as the program runs, ready for the largest reply that the server may send. */
async function connect(target) {
  // A server with a certificate wants grpc.credentials.createSsl(); without one, a token can be read on its way.
  const credentials = grpc.credentials.createInsecure();
  const first = new QuestionAnswering(target, credentials, OPTIONS);
  try {
    const getModel = promisify(first.getModel).bind(first);
    const { limits } = await getModel({}, metadata(), { deadline: Date.now() + TIMEOUT_MS });
    return new QuestionAnswering(target, credentials, {
      ...OPTIONS,
      'grpc.max_receive_message_length': Math.max(limits.responseBytes, GRPC_RECEIVE_LIMIT),
    });
  } finally {
    first.close();
  }
}

function metadata() {
  const sent = new grpc.Metadata();
  sent.set('x-request-id', randomUUID()); // the server's log has it in every entry about the call
  const token = process.env.DISTILQA_TOKEN;
  if (token) sent.set('authorization', `Bearer ${token}`);
  return sent;
}

/** One question. Waits where the server says when to try again, as long as the deadline allows. */
async function answer(client, request) {
  const deadline = Date.now() + TIMEOUT_MS;
  const call = promisify(client.answer).bind(client);
  for (;;) {
    try {
      return await call(request, metadata(), { deadline });
    } catch (error) {
      const [details] = error.metadata?.get('grpc-status-details-bin') ?? [];
      const delayMs = details && retryDelayMs(types['google.rpc.Status'].deserialize(details));
      if (delayMs === undefined || Date.now() + delayMs >= deadline) throw error;
      await sleep(delayMs);
    }
  }
}

/** Many on one stream: yields {request, response} or {request, status}, in the order in which they are done. */
async function* answerStream(client, requests) {
  const deadline = Date.now() + TIMEOUT_MS;
  const left = new Map(requests.map((request, number) => [`${number}`, request]));
  while (left.size) {
    let replies = 0;
    let longestMs = 0;
    const call = client.answerStream(metadata(), { deadline });
    // pipe() sends while the loop receives, no faster than the server reads, and says when there are no more.
    Readable.from([...left].map(([id, request]) => ({ id, request }))).pipe(call);
    try {
      for await (const { id, response, status } of call) {
        replies += 1;
        const delayMs = status && retryDelayMs(status);
        if (delayMs !== undefined && Date.now() + delayMs < deadline) {
          longestMs = Math.max(longestMs, delayMs);
          continue;
        }
        yield { request: left.get(id), response, status };
        left.delete(id);
      }
    } catch (error) {
      // A server that stops ends the stream. gRPC tries again by itself only before the first reply.
      if (error.code !== grpc.status.UNAVAILABLE || !replies) throw error;
    }
    if (left.size) await sleep(longestMs);
  }
}

/** When to try again what was refused, from a google.rpc.Status; undefined if that would not help. */
function retryDelayMs({ code, details }) {
  const detail = details.find(({ type_url: url }) => url.endsWith('/google.rpc.RetryInfo'));
  if (code !== grpc.status.RESOURCE_EXHAUSTED || !detail) return undefined;
  const { seconds, nanos } = RetryInfo.deserialize(detail.value).retryDelay;
  return seconds * 1000 + nanos / 1e6;
}

/**
 * Where an answer stands in a JavaScript string, which counts UTF-16 units: decode the bytes before it.
 * Neither pair of the answer is that: 'é' is 2 bytes and 1 unit, '🌊' 1 code point and 2 units.
 */
function place(passage, { text, startByte }) {
  const start = Buffer.from(passage).toString('utf8', 0, startByte).length;
  return { start, end: start + text.length };
}

function print({ question, passages }, { answers }) {
  const [best] = answers;
  const { start, end } = place(passages[best.passage].text, best);
  const found = passages[best.passage].text.slice(start, end);
  if (found !== best.text) throw new Error(`${best.text} is not at its place`);
  console.log(`${question} ${found} (${best.score.toFixed(2)})`);
  console.log(`    UTF-16 ${start}-${end}, code points ${best.start}-${best.end}, bytes ${best.startByte}-${best.endByte}`);
}

const { values, positionals } = parseArgs({ allowPositionals: true, options: { stream: { type: 'boolean' } } });
const [target, passage = PASSAGE, ...questions] = positionals;
if (!target) {
  console.error('usage: node ask.mjs [--stream] HOST:PORT [PASSAGE QUESTION...]');
  process.exit(2);
}
const requests = (questions.length ? questions : QUESTIONS).map((question) => ({
  question,
  passages: [{ text: passage }],
}));

let client;
try {
  client = await connect(target);
  if (values.stream) {
    for await (const { request, response, status } of answerStream(client, requests)) {
      if (status) console.error(`${request.question} ${grpc.status[status.code]}: ${status.message}`);
      else print(request, response);
    }
  } else {
    for (const request of requests) print(request, await answer(client, request));
  }
} catch (error) {
  if (!(error.code in grpc.status)) throw error;
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
} finally {
  client?.close();
}
