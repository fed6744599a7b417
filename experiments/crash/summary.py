"""From the notes of all trials to results.json and the tables of README.md."""

from __future__ import annotations

import collections
import json
import statistics
from collections.abc import Sequence
from typing import Any

import record
from campaign import Campaign
from networks import STRANGERS


def summarize(campaign: Campaign) -> dict[str, Any]:
  """What each part found; parts that were not tried are empty."""
  notes = {part: campaign.records(part)
           for part in ('kill', 'fault', 'tmpfs', 'calls', 'signal', 'broken', 'broken run',
                        'edits', 'readers', 'claims', 'population', 'search', 'network')}
  # Where the runs lie is nobody's business.
  notes = json.loads(json.dumps(notes).replace(f'{campaign.watcher.work}/', ''))
  return {'kill': _kills(notes['kill'], campaign) if notes['kill'] else {},
          'fault': _faults(notes['fault']) if notes['fault'] else {},
          'calls': notes['calls'][0] if notes['calls'] else {},
          'tmpfs': notes['tmpfs'], 'signal': _signals(notes['signal']) if notes['signal'] else {},
          'broken': notes['broken'], 'broken run': notes['broken run'], 'edits': notes['edits'],
          'population': notes['population'], 'search': notes['search'], 'network': notes['network'],
          'readers': notes['readers'], 'claims': notes['claims'],
          'wrong': [note for part in notes.values() for note in part if note.get('wrong')]}


def _kills(notes: Sequence[dict[str, Any]], campaign: Campaign) -> dict[str, Any]:
  killed = [note for note in notes if note['phase']]
  finished = [note for note in notes if not note['phase']]
  phases = {}
  for phase in dict.fromkeys(note['phase'] for note in killed):
    those = [note for note in killed if note['phase'] == phase]
    phases[phase] = {
        'kills': len(those), 'recovered': sum(not note['wrong'] for note in those),
        'lost_seconds': statistics.mean(note['lost'] for note in those),
        'most_lost_seconds': max(note['lost'] for note in those)}
  began = [note['began'] for note in notes if note['began'] is not None]
  lines = (campaign.watcher.work / 'whole-1' / 'metrics.jsonl').read_text().splitlines()
  first, last = (json.loads(line) for line in (lines[0], lines[-1]))
  return {'kills': len(killed), 'starts': len(notes), 'phases': phases,
          'runs_finished': len(finished),
          'runs_equal': sum(not note['wrong'] for note in finished),
          'leftovers': sum(len(note['leftovers']) for note in finished),
          'start_to_training_seconds': statistics.median(began) if began else None,
          'lost_seconds': statistics.mean(note['lost'] for note in killed),
          'steps_a_second': (last['step'] - first['step']) / (last['seconds'] - first['seconds']),
          'most_kills_of_a_run': max(collections.Counter(
              note['run'] for note in killed).values())}


def _faults(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
  groups: dict[str, Any] = {}
  for note in notes:
    kind = note['kind'] if note['folder'] == 'fault' else {
        'unkept-cache': 'compiled programs', 'unkept-data': 'prepared data'}[note['folder']]
    group = groups.setdefault(kind, {
        'tried': 0, 'survived': 0, 'stopped': 0, 'went on': 0, 'not reached': 0, 'errors': [],
        'places': []})
    group[note['outcome']] += 1
    if note['outcome'] == 'not reached':
      continue
    group['tried'] += 1
    group['survived'] += not note['wrong']
    group['errors'] = sorted({*group['errors'], note['error']})
    group['places'] = sorted({*group['places'], note['place']})
  return {'kinds': groups, 'went_on_at': sorted({
      f'{note["kind"]} {note["place"]}' for note in notes
      if note['outcome'] == 'went on' and note['folder'] == 'fault'}),
          'says': next((note['says'].strip() for note in notes if note['outcome'] == 'stopped'
                        and 'checkpoint of step' in note['says']), ''),
          'leftovers': sum(len(note['leftovers']) for note in notes)}


def _signals(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
  sent = [note for note in notes if note['phase'] and note['phase'] != 'too late']
  phases: dict[str, Any] = {}
  for note in sent:
    name = 'SIGTERM' if note['signal'] == 15 else 'SIGINT'
    entry = phases.setdefault(note['phase'], {
        'SIGTERM': 0, 'SIGINT': 0, 'survived': 0, 'longest_seconds': 0.0,
        'longest_computing_seconds': 0.0})
    entry[name] += 1
    entry['survived'] += not note['wrong']
    entry['longest_seconds'] = max(entry['longest_seconds'], note['leaving'])
    entry['longest_computing_seconds'] = max(entry['longest_computing_seconds'],
                                             note['leaving_cpu'])
  finished = [note for note in notes if note['finished']]
  return {'sent': len(sent), 'phases': phases, 'too_late': sum(
      note['phase'] == 'too late' for note in notes), 'runs_finished': len(finished),
      'runs_equal': sum(not note['wrong'] for note in finished)}


def text(results: dict[str, Any]) -> str:
  """The tables, as Markdown."""
  import watch
  rows = [['fault', 'tried', 'survived', 'what the user sees']]
  paragraphs = []
  kill, fault, signal = results['kill'], results['fault'], results['signal']
  if kill:
    good = sum(entry['recovered'] for entry in kill['phases'].values())
    rows.append(['`kill -9`', str(kill['kills']), str(good),
                 'nothing; the same command goes on at the last checkpoint'])
    rows.append(['a run killed again and again, up to '
                 f'{kill["most_kills_of_a_run"]} times, then finished',
                 str(kill['runs_finished']), str(kill['runs_equal']),
                 'the bits of an uninterrupted run'])
  members = results['population']
  if members:
    killed = [note for note in members if note['killed']]
    rows.append(['`kill -9` of a population of four, in either mode', str(len(killed)),
                 str(sum(not note['wrong'] for note in killed)),
                 'nothing; the same command goes on'])
    finished = [note for note in members if not note['killed']]
    rows.append(['a population killed again and again, then finished', str(len(finished)),
                 str(sum(not note['wrong'] for note in finished)),
                 'the bits of every member of an uninterrupted one'])
  if results['search']:
    kills = sum(note['kills'] for note in results['search'])
    good = [note for note in results['search'] if not note['wrong']]
    rows.append(['`kill -9` of one of three workers of a search', str(kills),
                 str(sum(note['kills'] for note in good)),
                 'nothing; the others take its trials up'])
    rows.append(['a search whose workers were killed again and again, then finished',
                 str(len(results['search'])), str(len(good)),
                 'every trial once, the best with the bits of its run alone'])
  names = {'write': 'write fails', 'sync': 'fsync fails', 'rename': 'rename fails',
           'mkdir': 'mkdir fails', 'open': 'creating a file fails', 'truncate': 'ftruncate fails',
           'compiled programs': 'a call fails that keeps a compiled program',
           'prepared data': 'a call fails that keeps prepared data'}
  for kind, name in names.items():
    if fault and kind in fault['kinds']:
      entry = fault['kinds'][kind]
      sees = [f'{entry["stopped"]} times one sentence, exit code 1'] * bool(entry['stopped'])
      sees += [f'{entry["went on"]} times the run goes on'] * bool(entry['went on'])
      rows.append([f'{name} ({", ".join(entry["errors"])})', str(entry['tried']),
                   str(entry['survived']), '; '.join(sees)])
  tmpfs = [note for note in results['tmpfs'] if 'outcome' in note]
  if tmpfs:
    stopped = [note for note in tmpfs if note['outcome'] == 'stopped']
    rows.append(['the disk is full (a small tmpfs)', str(len(tmpfs)),
                 str(sum(not note['wrong'] for note in tmpfs)),
                 f'{len(stopped)} times one sentence, exit code 1; with room the run goes on'])
  elif results['tmpfs']:
    rows.append(['the disk is full (a small tmpfs)', '0', '0',
                 f'not tried: {results["tmpfs"][0]["skipped"]}'])
  if signal:
    rows.append(['SIGTERM and SIGINT', str(signal['sent']), str(sum(
        entry['survived'] for entry in signal['phases'].values())),
                 'exit code 143 and 130; the same command goes on'])
    rows.append(['a run that was sent signals again and again, then finished',
                 str(signal['runs_finished']), str(signal['runs_equal']),
                 'the bits of an uninterrupted run'])
  for alone in (False, True):
    notes = [note for note in results['broken'] + results['broken run'] if note['alone'] == alone]
    if notes:
      rows.append([f'a checkpoint damaged, {"no other there" if alone else "an older one there"}',
                   str(sum(note.get('tried', 1) for note in notes)),
                   str(sum(note.get('tried', 1) - len(note['wrong']) for note in notes)),
                   'a sentence that names the file; exit code 1' if alone else
                   'a warning that names the file; the run goes on from the older one'])
  kinds: dict[str, list[dict[str, Any]]] = {}
  for note in results['edits']:
    kinds.setdefault(note['kind'], []).append(note)
  for kind, notes in kinds.items():
    tried, refused = (sum(note[name] for note in notes) for name in ('tried', 'refused'))
    rows.append([f'{kind} ({", ".join(dict.fromkeys(note["how"] for note in notes))})',
                 f'{tried:,}', f'{tried - sum(len(note["wrong"]) for note in notes):,}',
                 f'{refused:,} times a sentence, and no byte is changed; else what is read is '
                 'right'])
  for kinds_of, sees in ((
      STRANGERS, 'nothing; the run ends with the bits of an undisturbed one'), (
      ('kill -9 of process 0', 'kill -9 of process 1'),
      'both end; the same commands go on to the same bits'), (
      ('a second run on the port',), 'one sentence, exit code 1; the first goes on'), (
      ('another address of this machine',), 'nobody listens there')):
    notes = [note for note in results['network'] if note['kind'] in kinds_of]
    if notes:
      talked = sum(note['connections'] for note in notes)
      rows.append([
          f'two processes on loopback: {", ".join(dict.fromkeys(n["kind"] for n in notes))}'
          + f' ({talked:,} connections)' * bool(talked), str(len(notes)),
          str(sum(not note['wrong'] for note in notes)), sees])
  if results['claims']:
    rows.append(['a small file that claims much', str(len(results['claims'])),
                 str(sum(not note['wrong'] for note in results['claims'])),
                 'a sentence that names the file; exit code 1'])
  readers = results['readers']
  if readers:
    tried = sum(note['tried'] for note in readers)
    rows.append(['broken input given to what reads it', f'{tried:,}',
                 f'{tried - sum(note["failed"] for note in readers):,}',
                 'a sentence that names file or field; exit code 1'])
  paragraphs.append(record.table(rows))
  if kill:
    table = [['killed during', 'kills', 'recovered', 'work lost, s', 'most, s',
              'most, steps']]
    for phase, means in watch.PHASES.items():
      if phase in kill['phases']:
        entry = kill['phases'][phase]
        table.append([f'{phase}: {means}', str(entry['kills']), str(entry['recovered']),
                      f'{entry["lost_seconds"]:.2f}', f'{entry["most_lost_seconds"]:.2f}',
                      '0' if phase == 'report' else
                      f'{entry["most_lost_seconds"] * kill["steps_a_second"]:.0f}'])
    paragraphs += ['### Kills by phase', record.table(table), (
        f'{kill["kills"]} kills in {kill["starts"]} starts. Work lost is what was done after the '
        f'newest checkpoint, {kill["lost_seconds"]:.2f} s a kill on average, with a checkpoint '
        f'every 0.1 s; an uninterrupted run takes {kill["steps_a_second"]:.0f} steps a second. '
        f'Besides, a start takes {kill["start_to_training_seconds"]:.1f} s (median) to training. '
        f'Temporary files left by the runs that finished: {kill["leftovers"]}.')]
  if signal:
    table = [['signal during', 'SIGTERM', 'SIGINT', 'left in order', 'longest, s',
              'of it computing, s']]
    for phase in watch.PHASES:
      if phase in signal['phases']:
        entry = signal['phases'][phase]
        table.append([phase, str(entry['SIGTERM']), str(entry['SIGINT']), str(entry['survived']),
                      f'{entry["longest_seconds"]:.2f}',
                      f'{entry["longest_computing_seconds"]:.2f}'])
    paragraphs += ['### Signals by phase', record.table(table)]
  if fault:
    seen = results['calls']
    traced = ('the observer and strace count the same: '
              if seen['strace'] == seen['observer'] else
              'there was no strace to compare with: ' if seen['strace'] is None else
              f'strace counts otherwise ({seen["strace"]}): ')
    places = len({place for entry in fault['kinds'].values() for place in entry['places']})
    paragraphs += ['### Calls that fail', (
        f'One call of a run fails, in {places} different places. A run of two epochs makes '
        f'{", ".join(f"{count} {kind}" for kind, count in sorted(seen["observer"].items()))} calls '
        f'below its directory; {traced}none passes the observer by.'
        if seen['strace'] == seen['observer'] else
        f'One call of a run fails, in {places} different places; {traced}{seen["observer"]}.')]
    if fault['went_on_at']:
      paragraphs.append('The run goes on, and says so where it matters, when these fail: '
                        f'{", ".join(f"`{where}`" for where in fault["went_on_at"])}.')
    paragraphs.append(f'What is said of a checkpoint: `{fault["says"]}`')
  if readers:
    table = [['broken input', 'tried', 'failed']]
    table += [[note['what'], f'{note["tried"]:,}', f'{note["failed"]:,}'] for note in readers]
    paragraphs += ['### Broken input', record.table(table)]
  if results['claims']:
    table = [['a file that claims much', 'on the disk, KiB', 'memory taken, MiB']]
    table += [[note['what'], f'{note["bytes"] / 2**10:,.0f}', f'{note["grown"] / 2**20:,.0f}']
              for note in results['claims']]
    paragraphs += ['### Memory that readers take', record.table(table)]
  wrong = results['wrong']
  paragraphs.append(f'Trials that did not end as promised: {len(wrong)}'
                    + (', listed in [results.json](results.json).' if wrong else '.'))
  return '\n\n'.join(paragraphs)
