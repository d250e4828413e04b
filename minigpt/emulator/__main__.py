import sys

print("minigpt: the emulator is used from Python, as `import minigpt.emulator` explains (help(minigpt.emulator)); "
      "python -m minigpt.emulator.demo shows what it says about two kernels", file=sys.stderr)
sys.exit(2)
