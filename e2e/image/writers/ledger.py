"""A database in WAL mode.

ledger.py write FILE commits transfers for ever and prints each; ledger.py check FILE prints how many there are.
"""

import sqlite3
import sys

command, path = sys.argv[1:]
book = sqlite3.connect(path, isolation_level=None)
if command == "write":
    book.execute("PRAGMA journal_mode=WAL")
    book.execute("PRAGMA synchronous=FULL")
    book.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance INTEGER)")
    book.execute("CREATE TABLE IF NOT EXISTS transfers (number INTEGER PRIMARY KEY, amount INTEGER, padding BLOB)")
    book.execute("INSERT OR IGNORE INTO accounts VALUES ('a', 1000000), ('b', 1000000)")
    number = book.execute("SELECT coalesce(max(number), 0) FROM transfers").fetchone()[0]
    while True:
        number += 1
        book.execute("BEGIN")
        book.execute("UPDATE accounts SET balance = balance - ? WHERE name = 'a'", (number % 7,))
        book.execute("UPDATE accounts SET balance = balance + ? WHERE name = 'b'", (number % 7,))
        book.execute("INSERT INTO transfers VALUES (?, ?, randomblob(2000))", (number, number % 7))
        book.execute("COMMIT")
        print(number, flush=True)
else:
    assert book.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    count, last, moved = book.execute("SELECT count(*), max(number), sum(amount) FROM transfers").fetchone()
    balances = dict(book.execute("SELECT name, balance FROM accounts"))
    assert count == last and balances == {"a": 1000000 - moved, "b": 1000000 + moved}, (count, last, moved, balances)
    print(count)
