"""tritonclient in an environment of its own: reads pickled requests from standard input, and writes their pickled answers.

A request is (model, inputs by name, names of outputs); text is an array of bytes. An answer is a dict of arrays by name, or of
`error` and `status`; that of a stream is a list of them. The words are the ports of HTTP and gRPC, and what to do: `http` or
`grpc` one after the other, `together` all at the same time, `stream` the answers of a decoupled model.
"""

import pickle
import queue
import sys
import threading
from typing import Any

import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

LAST = "triton_final_response"


def tensors(library: Any, inputs: dict[str, Any]) -> list[Any]:
    made = []
    for name, values in inputs.items():
        made.append(library.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
        made[-1].set_data_from_numpy(values)
    return made


def ask(library: Any, client: Any, request: Any) -> dict[str, Any]:
    model, inputs, names = request
    wanted = [library.InferRequestedOutput(name) for name in names] or None
    try:
        found = client.infer(model, tensors(library, inputs), outputs=wanted)
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}
    described = found.get_response()
    outputs = described["outputs"] if isinstance(described, dict) else described.outputs
    each = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
    return {name: found.as_numpy(name) for name in each}


def together(address: str, requests: list[Any]) -> list[Any]:
    answers: list[Any] = [None] * len(requests)
    start = threading.Barrier(len(requests))

    def run(place: int) -> None:
        with grpc.InferenceServerClient(address) as client:
            start.wait()
            answers[place] = ask(grpc, client, requests[place])

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def stream(client: Any, request: Any) -> list[dict[str, Any]]:
    events: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: events.put((result, error)))
    model, inputs, _ = request
    client.async_stream_infer(model, tensors(grpc, inputs))
    answers = []
    while True:
        result, error = events.get(timeout=60)
        if error:
            answers.append({"error": error.message(), "status": error.status()})
            break
        described = result.get_response()
        answers.append({output.name: result.as_numpy(output.name) for output in described.outputs})
        if described.parameters[LAST].bool_param:
            break
    client.stop_stream()
    return answers


def main() -> None:
    http_port, grpc_port, what = sys.argv[1:]
    requests = pickle.load(sys.stdin.buffer)
    address = f"127.0.0.1:{grpc_port}"
    answers: list[Any]
    if what == "together":
        answers = together(address, requests)
    elif what == "http":
        with http.InferenceServerClient(f"127.0.0.1:{http_port}") as client:
            answers = [ask(http, client, request) for request in requests]
    else:
        with grpc.InferenceServerClient(address) as client:
            answers = [stream(client, each) if what == "stream" else ask(grpc, client, each) for each in requests]
    sys.stdout.buffer.write(pickle.dumps(answers))


if __name__ == "__main__":
    main()
