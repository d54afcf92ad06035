"""The small World Action Model: tokenizer, text, trunk."""
