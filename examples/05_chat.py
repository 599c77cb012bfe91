"""Ask a served model with the stock openai client, and read what the answer took.

Run it after `moulin deploy smollm2-135m-instruct`, where `moulin up` runs.
"""

import json
from pathlib import Path

from openai import OpenAI

credentials = json.loads(Path(".moulin/credentials.json").read_text())
client = OpenAI(base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["api_key"])

model = client.models.list().data[0].id
answer = client.chat.completions.with_raw_response.create(
    model=model,
    messages=[{"role": "user", "content": "What does a mill do?"}],
    max_tokens=40,
    temperature=0,
)
completion = answer.parse()
assert completion.usage is not None

print(f"{model}: {completion.choices[0].message.content}")
print(f"tokens: {completion.usage.prompt_tokens} in, {completion.usage.completion_tokens} out")
# Provisional until the metering interval closes; then the receipt has the final figures. The class of
# energy is `estimated` until an earlier interval has shown what a token takes here.
names = ("energy-class", "energy-uncertainty", "energy-j", "co2e-g", "cost-eur", "receipt")
for name in (f"x-moulin-{each}" for each in names):
    print(f"{name}: {answer.headers.get(name, 'not known yet')}")
