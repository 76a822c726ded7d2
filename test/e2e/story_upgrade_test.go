// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	registryv1alpha3 "github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/product"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/upstream/container"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// previousVersion is the commit that stands for the version before this one, as long as there is no release.
const previousVersion = "59d42bdda2f64674ae4fb6a75e137ec5b3ddad12"

// An operator upgrades the extension while Shoots use it.
var _ = Describe("An upgrade from the previous version", Ordered, Label("upgrade", "long"), func() {
	const upstreamHost = "docker.io"

	It("causes no failed pull and preserves the content, volumes and endpoints of caches", func(ctx context.Context) {
		checkout := checkOut(ctx, previousVersion)
		roots, err := container.CACertificate()
		Expect(err).NotTo(HaveOccurred())
		manifest := exampleShoot()
		By("installing the previous version")
		// The next story expects the product as it is.
		DeferCleanup(func(ctx context.Context) { installEngine(ctx, "") }, NodeTimeout(10*time.Minute))
		Expect(product.Install(ctx, tb.Cluster, progress, product.Options{CABundle: roots, Checkout: checkout})).To(Succeed())
		result := startShoot(ctx, manifest)
		before, claim := endpoint(result, upstreamHost), claimOf(ctx, upstreamHost)
		image := cachePod(ctx, upstreamHost).Spec.Containers[0].Image
		warm := newSample(ctx, upstreamHost, small)
		_, err = pull.Measured(ctx, tb.Upstream, workers()[0], warm.tag)
		Expect(err).NotTo(HaveOccurred())
		going := startPulls(ctx, maxPulls, newOf(upstreamHost), workers()...)
		going.waitForMore(ctx, 1)

		By("upgrading the chart")
		installEngine(ctx, "")
		going.waitForMore(ctx, 1)
		By("reconciling the Shoot, which replaces the pods of its caches")
		result = applyShoot(ctx, manifest)
		name := registryv1alpha3.ObjectName(upstreamHost)
		Eventually(func(g Gomega) {
			set, pod := &appsv1.StatefulSet{}, &corev1.Pod{}
			g.Expect(kube.Get(ctx, inKubeSystem(name), set)).To(Succeed())
			g.Expect(set.Status.CurrentRevision).To(Equal(set.Status.UpdateRevision))
			g.Expect(kube.Get(ctx, inKubeSystem(name+"-0"), pod)).To(Succeed())
			g.Expect(pod.Spec.Containers[0].Image).NotTo(Equal(image), "the pod must be of the new version")
			g.Expect(readyPod(ctx, g, name+"-0")).To(BeTrue())
		}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(Succeed())
		waitForCaches(ctx, result)
		going.waitForMore(ctx, 2)
		expectNoneFailed("pulls during the upgrade", going.end())

		Expect(endpoint(result, upstreamHost)).To(Equal(before), "nodes must have nothing to learn")
		Expect(claimOf(ctx, upstreamHost).UID).To(Equal(claim.UID), "the volume must be the same")
		outcome, err := pull.Measured(ctx, tb.Upstream, workers()[1], warm.tag)
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
		Expect(outcome.BlobRequests).To(BeZero(), "what the previous version has stored must be served: %+v", outcome)
	}, SpecTimeout(25*time.Minute))
})

// checkOut returns a folder with the sources of a commit. A clone without history has none: the spec is skipped then.
func checkOut(ctx context.Context, commit string) string {
	GinkgoHelper()
	root, err := workspace.Root()
	Expect(err).NotTo(HaveOccurred())
	if _, err := git(ctx, root, "cat-file", "-e", commit+"^{commit}"); err != nil {
		Skip(fmt.Sprintf("the history of this clone does not have the previous version: git fetch origin %s (%v)", commit, err))
	}
	archive, err := git(ctx, root, "archive", "--format=tar", commit)
	Expect(err).NotTo(HaveOccurred())
	state, err := workspace.StateDir()
	Expect(err).NotTo(HaveOccurred())
	dir := filepath.Join(state, "previous")
	Expect(os.RemoveAll(dir)).To(Succeed())
	DeferCleanup(func() { Expect(os.RemoveAll(dir)).To(Succeed()) })
	Expect(extract(archive, dir)).To(Succeed())
	return dir
}

func git(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(stderr.String()))
	}
	return out, err
}

// extract writes the files of an archive into a new folder.
func extract(archive []byte, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for reader := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch header.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(header.Name), 0o755)
		case tar.TypeReg:
			var content []byte
			if content, err = io.ReadAll(reader); err == nil {
				err = root.WriteFile(header.Name, content, header.FileInfo().Mode().Perm())
			}
		}
		if err != nil {
			return fmt.Errorf("extracting %s: %w", header.Name, err)
		}
	}
}
