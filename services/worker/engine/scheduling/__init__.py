"""Which requests a step serves: requests and their places, queues, fairness, priorities, limits."""
