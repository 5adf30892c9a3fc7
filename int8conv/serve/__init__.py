"""A local server with the interface of OpenAI's: one model, a few generations at a time, for the clients of one machine or household.

The extra ``serve`` has what it needs. For many users at once vLLM is the tool.
"""
