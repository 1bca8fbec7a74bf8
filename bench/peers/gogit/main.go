// Lists the refs of remotes with go-git, so many at a time, as Rancher Fleet's poller does: a new Remote for each poll,
// List, and the connections of go-git's own HTTP client. The last line of output says what the measured part took. Authorities
// are the system's (SSL_CERT_FILE): given one of their own, go-git opens a connection for each poll.
//
//	gogit -polls 10000 -in-flight 50 -remotes 500 [-keep 50] http://127.0.0.1:PORT
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport/client"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/memory"
)

func die(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		die(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func peakBytes() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		die(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			kibibytes, _ := strconv.ParseInt(fields[1], 10, 64)
			return kibibytes * 1024
		}
	}
	return 0
}

func poll(url string, branch plumbing.ReferenceName, commit string) error {
	remote := git.NewRemote(memory.NewStorage(), &config.RemoteConfig{Name: "origin", URLs: []string{url}})
	refs, err := remote.List(&git.ListOptions{PeelingOption: git.AppendPeeled})
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if ref.Name() == branch {
			if ref.Hash().String() != commit {
				return fmt.Errorf("%s is %s", branch, ref.Hash())
			}
			return nil
		}
	}
	return fmt.Errorf("%s is not there", branch)
}

func main() {
	polls := flag.Int64("polls", 1000, "")
	inFlight := flag.Int("in-flight", 50, "")
	remotes := flag.Int64("remotes", 100, "")
	keep := flag.Int("keep", 0, "connections kept for each host; 0: as net/http does, 2")
	branch := flag.String("branch", "refs/heads/main", "")
	commit := flag.String("commit", "", "what the branch must be")
	flag.Parse()
	base := flag.Arg(0)

	if *keep > 0 {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConns, transport.MaxIdleConnsPerHost = *keep, *keep
		kept := githttp.NewClient(&http.Client{Transport: transport})
		client.InstallProtocol("http", kept)
		client.InstallProtocol("https", kept)
	}

	run := func(count int64) {
		var next atomic.Int64
		var workers sync.WaitGroup
		for range *inFlight {
			workers.Add(1)
			go func() {
				defer workers.Done()
				for n := next.Add(1); n <= count; n = next.Add(1) {
					url := fmt.Sprintf("%s/team/repository-%d.git", base, n%*remotes)
					if err := poll(url, plumbing.ReferenceName(*branch), *commit); err != nil {
						die(err)
					}
				}
			}()
		}
		workers.Wait()
	}

	run(max(*remotes, int64(*inFlight)))
	cpu, started := cpuSeconds(), time.Now()
	run(*polls)
	said, _ := json.Marshal(map[string]any{
		"operations": *polls, "seconds": time.Since(started).Seconds(), "cpu_seconds": cpuSeconds() - cpu, "peak_bytes": peakBytes(),
	})
	fmt.Println(string(said))
}
