"""SmolLM2 in a third of its bytes: transformers' own tokens, from less memory."""

from thesis_lib.memory import open_streamed  # before torch: it sets how threads wait
from thesis_lib.memory.model import smollm2
from transformers import AutoTokenizer

MIB = 2**20
folder = smollm2.checkpoint()  # or a folder, as the README says
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The capital of France is", return_tensors="pt")

with open_streamed(folder, device_bytes=96 * MIB, context=32) as model:
    streamed = model.generate(**prompt, max_new_tokens=8, do_sample=False)
resident, _ = smollm2.load()
expected = resident.generate(**prompt, max_new_tokens=8, do_sample=False)

print(repr(tokenizer.decode(streamed[0])))
print("the resident model's tokens:", bool((streamed == expected).all()))
