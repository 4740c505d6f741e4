"""``python -m benchmarks``. The contestants' processes import this too, so it imports nothing."""

if __name__ == "__main__":
    import sys

    from benchmarks.bench import main

    sys.exit(main())
