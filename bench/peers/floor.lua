-- The floor: the question of a poll, POSTed again and again by wrk, its answer not looked at. BENCH_BODY is the body.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/x-git-upload-pack-request"
wrk.headers["Git-Protocol"] = "version=2"

function done(summary)
   local bad = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status +
      summary.errors.timeout
   io.write(string.format("floor %d %d\n", summary.requests, bad))
end
