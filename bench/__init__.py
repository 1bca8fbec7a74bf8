"""What fleetsync claims about speed, runnable: one command a question, each with a table, JSON and a picture.

    make bench                      every question
    make bench BENCH=poll_cost      one
    make bench SIZE=small           a quick look, with numbers that vary

How a question is written stands in `bench/frame.py`.
"""
