// SPDX-License-Identifier: Apache-2.0

package csidriver_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/registry-cache/extension/test/testbed/volumes/csidriver"
	"github.com/registry-cache/extension/test/testbed/volumes/disk"
)

const mib = 1 << 20

// node is the driver of one node as the kubelet sees it: behind a socket, with a folder of its own.
type node struct {
	csi.NodeClient
	disks   *disk.Folder
	kubelet string
}

func startNode(t *testing.T) *node {
	t.Helper()
	disks, err := disk.Open(filepath.Join(t.TempDir(), "disks"))
	if err != nil {
		t.Fatal(err)
	}
	connection := serve(t, func(server grpc.ServiceRegistrar) {
		csi.RegisterIdentityServer(server, &csidriver.Identity{})
		csi.RegisterNodeServer(server, csidriver.NewNode("node-a", disks))
	})
	n := &node{NodeClient: csi.NewNodeClient(connection), disks: disks, kubelet: filepath.Join(t.TempDir(), "kubelet")}
	if err := os.Mkdir(n.kubelet, 0o700); err != nil {
		t.Fatal(err)
	}
	return n
}

// serve runs the services behind a socket until the test ends.
func serve(t *testing.T, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := csidriver.Listen("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- csidriver.Serve(ctx, slog.New(slog.DiscardHandler), listener, register) }()
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := connection.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left after the server stopped: %v", err)
		}
	})
	return connection
}

func (n *node) staging(volume string) string { return filepath.Join(n.kubelet, "staging", volume) }

func (n *node) target(volume, pod string) string {
	return filepath.Join(n.kubelet, "pods", pod, volume, "mount")
}

func (n *node) create(t *testing.T, volume string, size int64) {
	t.Helper()
	if err := n.disks.Create(t.Context(), volume, size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // what a failed test leaves
		for _, path := range []string{n.target(volume, "one"), n.target(volume, "two"), n.staging(volume)} {
			for unix.Unmount(path, 0) == nil {
			}
		}
	})
}

func (n *node) stage(t *testing.T, volume string) {
	t.Helper()
	if _, err := n.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.staging(volume), VolumeCapability: fileSystem(),
	}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) publish(t *testing.T, volume, pod string, readOnly bool) string {
	t.Helper()
	if _, err := n.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: n.staging(volume), TargetPath: n.target(volume, pod),
		VolumeCapability: fileSystem(), Readonly: readOnly,
	}); err != nil {
		t.Fatal(err)
	}
	return n.target(volume, pod)
}

func (n *node) expand(ctx context.Context, volume, path string, required int64) (int64, error) {
	response, err := n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: volume, VolumePath: path, CapacityRange: &csi.CapacityRange{RequiredBytes: required},
	})
	return response.GetCapacityBytes(), err
}

// bytes returns the size of the file system at path and what is free of it, as the kubelet gets them.
func (n *node) bytes(t *testing.T, volume, path string) (total, available int64) {
	t.Helper()
	response, err := n.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volume, VolumePath: path})
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range response.GetUsage() {
		if usage.GetUnit() == csi.VolumeUsage_BYTES {
			return usage.GetTotal(), usage.GetAvailable()
		}
	}
	t.Fatalf("no bytes in %v", response)
	return 0, 0
}

func (n *node) release(t *testing.T, volume string, pods ...string) {
	t.Helper()
	for _, pod := range pods {
		if _, err := n.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: n.target(volume, pod)}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(n.target(volume, pod)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the target path is left: %v", err)
		}
	}
	if _, err := n.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: n.staging(volume)}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) mustBeDetached(t *testing.T, volume string) {
	t.Helper()
	if device, err := n.disks.Attached(volume); err != nil || device != nil {
		t.Errorf("volume %s is still attached: %+v, %v", volume, device, err)
	}
}

func fileSystem() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "xfs"}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// The life of a volume: every call is made twice, because the kubelet repeats what it is not sure of.
func TestLifeOfAVolume(t *testing.T) {
	needMounts(t)
	n := startNode(t)
	n.create(t, "pvc-a", 40*mib)
	var target string
	for range 2 {
		n.stage(t, "pvc-a")
		target = n.publish(t, "pvc-a", "one", false)
	}

	total, available := n.bytes(t, "pvc-a", target)
	if total < 30*mib || total > 40*mib || available > total {
		t.Errorf("a volume of 40 MiB has %d bytes, %d of them free", total, available)
	}
	if err := fill(filepath.Join(target, "a"), 64*mib); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("writing 64 MiB to a volume of 40 MiB: %v, want ENOSPC", err)
	}
	for range 2 {
		if size, err := n.expand(t.Context(), "pvc-a", target, 140_000_000); err != nil || size != 134*mib {
			t.Fatalf("expanding to 140 MB: %d, %v; want %d", size, err, 134*mib)
		}
	}
	if grown, _ := n.bytes(t, "pvc-a", target); grown < total+90*mib {
		t.Errorf("%d bytes after growing by 94 MiB, %d before", grown, total)
	}
	if err := fill(filepath.Join(target, "b"), 64*mib); err != nil {
		t.Errorf("writing 64 MiB after growing by 94 MiB: %v", err)
	}

	for range 2 {
		n.release(t, "pvc-a", "one")
	}
	n.mustBeDetached(t, "pvc-a")
	if entries, err := os.ReadDir(n.staging("pvc-a")); err != nil || len(entries) > 0 {
		t.Errorf("the staging path shows the volume after it was unstaged: %v, %v", entries, err)
	}

	n.stage(t, "pvc-a")
	if info, err := os.Stat(filepath.Join(n.staging("pvc-a"), "b")); err != nil || info.Size() != 64*mib {
		t.Errorf("after staging it again, the written file is %v, %v", info, err)
	}
	n.release(t, "pvc-a")
	if err := n.disks.Remove("pvc-a"); err != nil {
		t.Error(err)
	}
}

func TestTwoPodsShareAVolume(t *testing.T) {
	needMounts(t)
	n := startNode(t)
	n.create(t, "pvc-a", disk.MinSize)
	n.stage(t, "pvc-a")
	writer := n.publish(t, "pvc-a", "one", false)
	reader := n.publish(t, "pvc-a", "two", true)
	if err := os.WriteFile(filepath.Join(writer, "file"), []byte("shared"), 0o600); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(reader, "file")); err != nil || string(content) != "shared" {
		t.Errorf("the second pod reads %q, %v", content, err)
	}
	if err := os.WriteFile(filepath.Join(reader, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing through the read-only mount: %v, want EROFS", err)
	}
	n.release(t, "pvc-a", "one", "two")
	n.mustBeDetached(t, "pvc-a")
}

// A mount that outlives its staging path, for example in the mount namespace of a pod, must not make the volume
// unusable: XFS refuses to mount the same file system from a second device.
func TestStagingWhileAnotherMountIsLeft(t *testing.T) {
	needMounts(t)
	n := startNode(t)
	n.create(t, "pvc-a", disk.MinSize)
	n.stage(t, "pvc-a")
	n.publish(t, "pvc-a", "one", false)
	n.release(t, "pvc-a")
	n.stage(t, "pvc-a")
	n.release(t, "pvc-a", "one")
	n.mustBeDetached(t, "pvc-a")
}

func TestRefusedCalls(t *testing.T) {
	needMounts(t)
	n := startNode(t)
	n.create(t, "pvc-a", disk.MinSize)
	n.create(t, "pvc-b", disk.MinSize)
	n.stage(t, "pvc-a")
	block := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
		AccessMode: fileSystem().GetAccessMode(),
	}
	ext4, shared, options := fileSystem(), fileSystem(), fileSystem()
	ext4.GetMount().FsType = "ext4"
	options.GetMount().MountFlags = []string{"noatime"}
	shared.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	stage := func(volume, path string, capability *csi.VolumeCapability) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: volume, StagingTargetPath: path, VolumeCapability: capability})
			return err
		}
	}
	expand := func(volume, path string, size int64) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := n.expand(ctx, volume, path, size)
			return err
		}
	}
	for _, tc := range []struct {
		name string
		call func(context.Context) error
		want codes.Code
	}{
		{"stage an absent volume", stage("absent", n.staging("absent"), fileSystem()), codes.NotFound},
		{"stage a name with a path", stage("../pvc-a", n.staging("x"), fileSystem()), codes.NotFound},
		{"stage without a volume", stage("", n.staging("x"), fileSystem()), codes.InvalidArgument},
		{"stage at a relative path", stage("pvc-b", "x", fileSystem()), codes.InvalidArgument},
		{"stage without a capability", stage("pvc-b", n.staging("x"), nil), codes.InvalidArgument},
		{"stage a block device", stage("pvc-b", n.staging("x"), block), codes.InvalidArgument},
		{"stage with ext4", stage("pvc-b", n.staging("x"), ext4), codes.InvalidArgument},
		{"stage for many nodes", stage("pvc-b", n.staging("x"), shared), codes.InvalidArgument},
		{"stage with mount options", stage("pvc-b", n.staging("x"), options), codes.InvalidArgument},
		{"stage over another volume", stage("pvc-b", n.staging("pvc-a"), fileSystem()), codes.Internal},
		{"expand what is not mounted", expand("pvc-b", n.staging("pvc-b"), 64*mib), codes.FailedPrecondition},
		{"expand at the path of another", expand("pvc-b", n.staging("pvc-a"), 64*mib), codes.FailedPrecondition},
		{"expand beyond the largest", expand("pvc-a", n.staging("pvc-a"), disk.MaxSize+1), codes.OutOfRange},
		{"publish what is not staged", func(ctx context.Context) error {
			_, err := n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
				VolumeId: "pvc-b", StagingTargetPath: n.staging("pvc-b"), TargetPath: n.target("pvc-b", "one"), VolumeCapability: fileSystem(),
			})
			return err
		}, codes.FailedPrecondition},
		{"measure what is not mounted", func(ctx context.Context) error {
			_, err := n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: "pvc-b", VolumePath: n.staging("pvc-b")})
			return err
		}, codes.NotFound},
		{"unstage without a path", func(ctx context.Context) error {
			_, err := n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: "pvc-a"})
			return err
		}, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(t.Context()); status.Code(err) != tc.want {
				t.Errorf("got %v, want code %s", err, tc.want)
			}
		})
	}
	if size, err := n.disks.Size("pvc-b"); err != nil || size != disk.MinSize {
		t.Errorf("refused calls changed the disk: %d, %v", size, err)
	}
	n.mustBeDetached(t, "pvc-b")
	n.release(t, "pvc-a")
}

func TestOrphansAreRemoved(t *testing.T) {
	needMounts(t)
	n := startNode(t)
	for _, volume := range []string{"live", "orphan", "unmounted-orphan"} {
		n.create(t, volume, disk.MinSize)
	}
	for _, volume := range []string{"live", "orphan"} {
		n.stage(t, volume)
		n.publish(t, volume, "one", false)
	}
	if err := csidriver.RemoveOrphans(slog.New(slog.DiscardHandler), n.disks, n.kubelet, map[string]bool{"live": true}); err != nil {
		t.Fatal(err)
	}
	names, err := n.disks.Names()
	if err != nil || len(names) != 1 || names[0] != "live" {
		t.Errorf("disks left: %v, %v; want live alone", names, err)
	}
	if total, _ := n.bytes(t, "live", n.target("live", "one")); total == 0 {
		t.Error("the live volume has no bytes")
	}
	n.release(t, "live", "one")
	n.mustBeDetached(t, "live")
}

func TestOrphanInUseStays(t *testing.T) {
	needMounts(t)
	n := startNode(t)
	n.create(t, "orphan", disk.MinSize)
	n.stage(t, "orphan")
	f, err := os.Create(filepath.Join(n.staging("orphan"), "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := csidriver.RemoveOrphans(slog.New(slog.DiscardHandler), n.disks, n.kubelet, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.disks.Size("orphan"); err != nil {
		t.Errorf("the disk of a mount with an open file: %v, want it to stay", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := csidriver.RemoveOrphans(slog.New(slog.DiscardHandler), n.disks, n.kubelet, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.disks.Size("orphan"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the file was closed: %v, want the disk gone", err)
	}
}

func needMounts(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, name := range []string{"mkfs.xfs", "xfs_growfs"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed (Debian package xfsprogs)", name)
		}
	}
}

// fill writes size bytes to a new file.
func fill(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, mib)
	for range size / mib {
		if _, err := f.Write(block); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}
