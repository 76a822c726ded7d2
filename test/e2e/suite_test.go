// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the user stories, on a kind-based Shoot with real kubelets, containerd, kube-proxy, resource manager
// and node agents. "make e2e" runs them; they make the testbed if it is not up, and leave it for the next run.
//
// The proof of where bytes came from is always the upstream's request log. A failed spec leaves what is needed to
// understand it below artifacts/.
package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	. "github.com/onsi/gomega"
	"golang.org/x/term"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

func TestE2E(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(2 * time.Minute)
	SetDefaultEventuallyPollingInterval(250 * time.Millisecond)
	suite, reporter := GinkgoConfiguration()
	// Ginkgo prints colour codes by default, also to files.
	reporter.NoColor = reporter.NoColor || os.Getenv("NO_COLOR") != "" || !term.IsTerminal(int(os.Stdout.Fd()))
	var failed types.SpecReports
	ReportAfterSuite("failures", func(report Report) {
		failed = report.SpecReports.WithState(types.SpecStateFailureStates)
	})
	RunSpecs(t, "registry-cache", suite, reporter)
	// The output of a run is long. Its end says why it has failed.
	for _, spec := range failed {
		t.Errorf("%s:\n%s", spec.FullText(), head(spec.FailureMessage(), maxFailure))
	}
}

// maxFailure is the number of bytes of an error at the end of the output.
const maxFailure = 3000

// head returns the first bytes of a text, without a part of a character.
func head(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "") + " ..."
}

// setupTimeout covers a machine that has to build the node image first.
const setupTimeout = 25 * time.Minute

// tb is the testbed, kube a client for its only cluster, nodes are its nodes. All are set once, before any spec.
var (
	tb       *testbed.Testbed
	kube     client.Client
	nodes    []kindcluster.Node
	progress = workspace.NewProgress(GinkgoWriter)
)

var _ = BeforeSuite(func(ctx context.Context) {
	var err error
	tb, err = testbed.Up(ctx, workspace.NewProgress(os.Stderr), testbed.Options{NodeImage: os.Getenv("NODE_IMAGE")})
	Expect(err).NotTo(HaveOccurred())
	config, err := tb.Cluster.RESTConfig()
	Expect(err).NotTo(HaveOccurred())
	kube, err = client.New(config, client.Options{Scheme: scheme()})
	Expect(err).NotTo(HaveOccurred())
	nodes, err = tb.Cluster.Nodes(ctx)
	Expect(err).NotTo(HaveOccurred())
	Expect(len(nodes)).To(BeNumerically(">=", 3), "the stories need a control plane and two workers")
	undo(ctx)
}, NodeTimeout(setupTimeout))

// exampleShoot returns the manifest of the user's document.
func exampleShoot() []byte {
	GinkgoHelper()
	root, err := workspace.Root()
	Expect(err).NotTo(HaveOccurred())
	manifest, err := os.ReadFile(filepath.Join(root, "example", "shoot.yaml"))
	Expect(err).NotTo(HaveOccurred())
	return manifest
}

// workers returns the nodes that are not the control plane.
func workers() []kindcluster.Node {
	var found []kindcluster.Node
	for _, node := range nodes {
		if node.Role == "worker" {
			found = append(found, node)
		}
	}
	return found
}
