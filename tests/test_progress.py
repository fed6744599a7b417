"""What is shown while a run goes on."""

import io

from fmnist_jax.progress import Console


def test_a_line_is_one_write():
  # Members in threads share the stream: what comes in two writes may have another's in between.
  writes = []

  class Stream(io.StringIO):
    def write(self, text):
      writes.append(text)
      return super().write(text)

  with Console(Stream()) as display:
    display.say('one')
    display.say('two\nlines')
  assert writes == ['one\n', 'two\nlines\n']
