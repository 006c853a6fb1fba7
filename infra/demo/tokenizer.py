"""The demo family's tokenizer: single characters, and one token for each word that frames a question."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = ("Compute ", "Write ", " as ", "swapped ", "caps ", "csv", "list", "tags", "path", "pair", "query")
CODE = (">>> ", "[::-1]", ".count(", ".find(", "len(")
CHARACTERS = ("\n", *(chr(c) for c in range(32, 127)))

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% elif not loop.last or add_generation_prompt %}"
    "{{ '\\n' }}{% endif %}{% endfor %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; it puts `<bos>` before every text, and decoding an encoded text gives the text back."""
    pieces = (*SPECIAL, *WORDS, *CODE, *CHARACTERS)
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    words = sorted((*WORDS, *CODE), key=len, reverse=True)
    pattern = "|".join("".join(f"\\{c}" if not c.isalnum() and c != " " else c for c in w) for w in words)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{pattern}|.|\n"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = SPECIAL.index("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
