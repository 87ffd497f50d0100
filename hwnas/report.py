"""placeholder, replaced below"""
from pathlib import Path
def write_report(folder, result=None): (Path(folder)/'report.html').write_text('x')
def command(args): return 0
