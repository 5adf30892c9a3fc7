"""EleutherAI's lm-evaluation-harness on the runtime: ``python -m int8conv.lm_eval run --model int8conv ...``."""
