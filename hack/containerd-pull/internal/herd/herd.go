// SPDX-License-Identifier: Apache-2.0

// Package herd is what the commands of all containerd lines share: flags, many clients at once, and the report. The
// lines also share one go.mod, so that containerd 1.7 runs with newer versions of what it depends on than its releases.
package herd

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// MaxConcurrentDownloads is the default of containerd's CRI plugin, max_concurrent_downloads, in each client.
const MaxConcurrentDownloads = 3

// maxClients bounds the simulated nodes of one process: each has up to MaxConcurrentDownloads connections and files
// open.
const maxClients = 1000

// Options say what one client pulls.
type Options struct {
	// Reference is "host/repository:tag" or "host/repository@sha256:<hex>"; it is not completed as Docker's are.
	Reference string
	// Hosts is the directory that containerd's config_path names, certs.d.
	Hosts string
	// Platform is "os/architecture[/variant]".
	Platform string
	// Store is the directory of the client's content store, which exists; empty means that content is verified and
	// thrown away.
	Store string
}

// Pull pulls as one node does and notes in the image what it has. It returns when nothing of it is running any more.
type Pull func(ctx context.Context, o Options, image *Image) error

// Main runs the command for containerd's Go module and returns its exit code: 0 if all clients have the image, 1 if
// not, 2 if the command line is wrong. Containerd's log goes to stderr.
func Main(module string, pull Pull) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	report, err := c.run(ctx, pull)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	report.Containerd = version(module)
	output := json.NewEncoder(os.Stdout)
	output.SetIndent("", "  ")
	if err := output.Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, client := range report.Clients {
		if client.Error != "" {
			return 1
		}
	}
	return 0
}

// command is a parsed command line.
type command struct {
	pull    Options // without Store
	clients int
	stagger time.Duration
	discard bool
	timeout time.Duration
}

func parse(args []string, output io.Writer) (command, error) {
	var c command
	flags := flag.NewFlagSet(filepath.Base(os.Args[0]), flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&c.pull.Hosts, "hosts", "", "`directory` with containerd's registry hosts, certs.d (required)")
	flags.StringVar(&c.pull.Platform, "platform", "linux/amd64", "`os/architecture[/variant]` to pull of an index")
	flags.IntVar(&c.clients, "clients", 1, "`number` of nodes that pull, each with connections and a store of its own")
	flags.DurationVar(&c.stagger, "stagger", 0, "`time` over which the starts of the clients are spread evenly")
	flags.BoolVar(&c.discard, "discard", false, "verify the content but store only manifests, in memory")
	flags.DurationVar(&c.timeout, "timeout", 10*time.Minute, "`time` after which clients that still pull fail")
	flags.Usage = func() {
		fmt.Fprintf(output, "Usage: %s --hosts DIR [flags] HOST/REPOSITORY:TAG|HOST/REPOSITORY@DIGEST\n", flags.Name())
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case flags.NArg() != 1:
		return c, fmt.Errorf("%d references, want one", flags.NArg())
	case c.pull.Hosts == "":
		// Without it containerd would go to the registries of the internet.
		return c, errors.New("--hosts is required")
	case c.clients < 1 || c.clients > maxClients:
		return c, fmt.Errorf("--clients is %d, must be 1 to %d", c.clients, maxClients)
	case c.stagger < 0:
		return c, fmt.Errorf("--stagger is %s, must not be negative", c.stagger)
	case c.timeout <= 0:
		return c, fmt.Errorf("--timeout is %s, must be positive", c.timeout)
	}
	if _, err := os.Stat(c.pull.Hosts); err != nil {
		return c, fmt.Errorf("--hosts: %w", err)
	}
	c.pull.Reference = flags.Arg(0)
	return c, nil
}

func (c command) run(ctx context.Context, pull Pull) (_ Report, err error) {
	var stores string
	if !c.discard {
		if stores, err = os.MkdirTemp("", "containerd-pull-"); err != nil {
			return Report{}, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(stores)) }()
	}
	options := make([]Options, c.clients)
	for i := range options {
		options[i] = c.pull
		if c.discard {
			continue
		}
		options[i].Store = filepath.Join(stores, strconv.Itoa(i))
		if err := os.Mkdir(options[i].Store, 0o700); err != nil {
			return Report{}, err
		}
	}
	report := Report{Reference: c.pull.Reference, Platform: c.pull.Platform, Clients: make([]Client, c.clients)}
	begin := time.Now()
	var clients sync.WaitGroup
	for i, o := range options {
		due := time.Duration(float64(c.stagger) * float64(i) / float64(c.clients))
		clients.Go(func() { report.Clients[i] = run(ctx, begin, due, o, pull) })
	}
	clients.Wait()
	report.Seconds = time.Since(begin).Seconds()
	return report, nil
}

// run pulls as one client when it is due.
func run(ctx context.Context, begin time.Time, due time.Duration, o Options, pull Pull) Client {
	timer := time.NewTimer(time.Until(begin.Add(due)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return Client{Error: fmt.Sprintf("waiting for the start: %s", context.Cause(ctx))}
	}
	start := time.Now()
	var image Image
	err := pull(ctx, o, &image)
	client := image.client()
	client.Start, client.Seconds = start.Sub(begin).Seconds(), time.Since(start).Seconds()
	if err != nil {
		client.Error = err.Error()
	}
	return client
}

// version returns the version of a module in this program.
func version(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			return dep.Version
		}
	}
	return ""
}
