"""How many plain questions the small chat model answers right, by system message.

    python benchmarks/system_message.py

Greedy decoding, no retrieval. The registry's `system` entry of the chat weights was chosen with it.
"""

from __future__ import annotations

import httpx

from nim_cookbook import endpoints
from nim_cookbook.models import load_registry

# Question, and accepted answers: any of them, anywhere in the answer, in any case.
QUESTIONS = {
    "What's the capital of France?": ["Paris"],
    "What's the capital of France": ["Paris"],
    "What is the capital of France?": ["Paris"],
    "What is the capital of Italy?": ["Rome"],
    "What is the capital of Germany?": ["Berlin"],
    "What's the capital of Spain?": ["Madrid"],
    "Which planet is the largest?": ["Jupiter"],
    "Who wrote Hamlet?": ["Shakespeare"],
    "What gas do plants take in?": ["carbon dioxide"],
    "How many days are in a week?": ["7", "seven"],
    "What is the chemical formula of water?": ["H2O", "H₂O"],
    "What is the largest ocean?": ["Pacific"],
    "In which country is the Eiffel Tower?": ["France"],
    "What is 2 plus 2?": ["4", "four"],
    "Who painted the Mona Lisa?": ["Leonardo"],
    "What color is the sky?": ["blue"],
    "What is the opposite of hot?": ["cold"],
    "What language is spoken in Brazil?": ["Portuguese"],
    "What is the capital of Japan?": ["Tokyo"],
    "Who was the first president of the United States?": ["Washington"],
}
MODELS_OWN = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SYSTEM_MESSAGES = [
    MODELS_OWN,
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in English.",
    "You are a helpful AI assistant. Answer in English, in one short sentence.",
    load_registry().weights_for("chat").system,
    "Answer in English.",
]


def right(http: httpx.Client, model: str, system: str) -> int:
    """Return how many of the questions are answered right under a system message."""
    count = 0
    for question, accepted in QUESTIONS.items():
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
        ]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 60}
        answer = http.post("/chat/completions", json=body).raise_for_status().json()
        text = answer["choices"][0]["message"]["content"].lower()
        count += any(word.lower() in text for word in accepted)
    return count


if __name__ == "__main__":
    nim = endpoints.connect("nim")
    print(f"{nim.chat.weights}, {len(QUESTIONS)} questions")
    with httpx.Client(base_url=nim.chat.url, timeout=120) as client:
        for message in SYSTEM_MESSAGES:
            print(f"{right(client, nim.chat.model, message):3d}  {message}")
    nim.close()
