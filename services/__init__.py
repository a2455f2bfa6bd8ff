"""The five services. Each owns its data and imports nothing of the others; they meet in events and in HTTP."""
