// SPDX-License-Identifier: Apache-2.0

package csidriver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/registry-cache/extension/test/testbed/volumes/disk"
	"github.com/registry-cache/extension/test/testbed/volumes/loop"
)

// FileSystem is the only file system of the volumes.
const FileSystem = "xfs"

// mountData makes XFS give blocks of deleted files back, so that disks stay sparse on the machine.
const mountData = "discard"

// Node is the CSI node service. The volume ID is the name of a disk in its folder. All calls are idempotent and
// decide from what the kernel tells, so the service may be restarted at any time.
type Node struct {
	NodeCapabilities
	name  string
	disks *disk.Folder
	busy  exclusive
}

// NewNode returns the service of the node with the given name.
func NewNode(name string, disks *disk.Folder) *Node {
	return &Node{name: name, disks: disks, busy: exclusive{held: map[string]bool{}}}
}

// NodeGetInfo tells the node's name. Where a volume can be used is said by the node affinity of its PersistentVolume.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.name}, nil
}

// NodeStageVolume mounts the disk at the staging path.
func (n *Node) NodeStageVolume(_ context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := checkCapability(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	staging := req.GetStagingTargetPath()
	file, release, err := n.open(req.GetVolumeId(), "staging_target_path", staging)
	if err != nil {
		return nil, err
	}
	defer release()
	switch mounted, err := n.mounted(file, staging); {
	case err != nil:
		return nil, err
	case mounted:
		return &csi.NodeStageVolumeResponse{}, nil
	}
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := n.mount(req.GetVolumeId(), staging); err != nil {
		return nil, status.Errorf(codes.Internal, "mounting volume %s at %s: %v", req.GetVolumeId(), staging, err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// mount mounts a disk at an existing folder.
func (n *Node) mount(volume, target string) error {
	device, err := n.disks.Attached(volume)
	if err != nil {
		return err
	}
	if device != nil {
		// Another mount of the disk is left somewhere. XFS refuses the same file system on a second device, but not a
		// second mount of the same device.
		return unix.Mount(device.Path, target, FileSystem, 0, mountData)
	}
	path, err := n.disks.Path(volume)
	if err != nil {
		return err
	}
	attachment, err := loop.Attach(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Mount(attachment.Path, target, FileSystem, 0, mountData), attachment.Close())
}

// NodeUnstageVolume takes the disk off the staging path. The kernel frees the loop device.
func (n *Node) NodeUnstageVolume(_ context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := n.release(req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath(), unmount); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume shows the staged disk at the target path.
func (n *Node) NodePublishVolume(_ context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := checkCapability(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	staging, target := req.GetStagingTargetPath(), req.GetTargetPath()
	if !filepath.IsAbs(staging) {
		return nil, status.Error(codes.InvalidArgument, "staging_target_path must be an absolute path")
	}
	file, release, err := n.open(req.GetVolumeId(), "target_path", target)
	if err != nil {
		return nil, err
	}
	defer release()
	switch staged, err := n.mounted(file, staging); {
	case err != nil:
		return nil, err
	case !staged:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not staged at %s", req.GetVolumeId(), staging)
	}
	switch published, err := n.mounted(file, target); {
	case err != nil:
		return nil, err
	case published:
		return &csi.NodePublishVolumeResponse{}, nil
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := bind(staging, target, req.GetReadonly()); err != nil {
		return nil, status.Errorf(codes.Internal, "publishing volume %s: %v", req.GetVolumeId(), err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume removes the target path.
func (n *Node) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	remove := func(target string) error {
		if err := unmount(target); err != nil {
			return err
		}
		if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := n.release(req.GetVolumeId(), "target_path", req.GetTargetPath(), remove); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeExpandVolume makes the disk, its loop device and its file system as large as required, while they are used. A
// disk that is larger stays as it is. Each step is repeated if an earlier call got only so far.
func (n *Node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	path := req.GetVolumePath()
	file, release, err := n.open(req.GetVolumeId(), "volume_path", path)
	if err != nil {
		return nil, err
	}
	defer release()
	wanted, err := disk.Size(req.GetCapacityRange().GetRequiredBytes(), req.GetCapacityRange().GetLimitBytes())
	if err != nil {
		return nil, status.Errorf(codes.OutOfRange, "expanding volume %s: %v", req.GetVolumeId(), err)
	}
	device, err := deviceAt(path)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if device == nil || device.File != file {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not mounted at %s", req.GetVolumeId(), path)
	}
	size, err := n.disks.Grow(req.GetVolumeId(), wanted)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "expanding volume %s: %v", req.GetVolumeId(), err)
	}
	if err := device.Resize(); err != nil {
		return nil, status.Errorf(codes.Internal, "expanding volume %s: %v", req.GetVolumeId(), err)
	}
	if err := disk.GrowFileSystem(ctx, path); err != nil {
		return nil, status.Errorf(codes.Internal, "expanding volume %s: %v", req.GetVolumeId(), err)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

// NodeGetVolumeStats tells the bytes and inodes of the mounted file system.
func (n *Node) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	path := req.GetVolumePath()
	if !filepath.IsAbs(path) {
		return nil, status.Error(codes.InvalidArgument, "volume_path must be an absolute path")
	}
	file, err := n.file(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	switch mounted, err := n.mounted(file, path); {
	case err != nil:
		return nil, err
	case !mounted:
		return nil, status.Errorf(codes.NotFound, "volume %s is not mounted at %s", req.GetVolumeId(), path)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return nil, status.Errorf(codes.Internal, "measuring volume %s: %v", req.GetVolumeId(), err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: int64(stat.Blocks) * stat.Bsize,
			Used: int64(stat.Blocks-stat.Bfree) * stat.Bsize, Available: int64(stat.Bavail) * stat.Bsize,
		},
		{
			Unit: csi.VolumeUsage_INODES, Total: int64(stat.Files),
			Used: int64(stat.Files - stat.Ffree), Available: int64(stat.Ffree),
		},
	}}, nil
}

// open checks the arguments that most calls have, reserves the volume until release is called, and returns the file
// of its disk.
func (n *Node) open(volume, field, path string) (file loop.File, release func(), err error) {
	if !filepath.IsAbs(path) {
		return file, nil, status.Errorf(codes.InvalidArgument, "%s must be an absolute path", field)
	}
	file, err = n.file(volume)
	if err != nil {
		return file, nil, err
	}
	release, err = n.busy.hold(volume)
	return file, release, err
}

// file returns the file of a volume's disk, or an error with the code NotFound.
func (n *Node) file(volume string) (loop.File, error) {
	if volume == "" {
		return loop.File{}, status.Error(codes.InvalidArgument, "volume_id is required")
	}
	path, err := n.disks.Path(volume)
	if err != nil {
		return loop.File{}, status.Error(codes.NotFound, err.Error())
	}
	file, err := loop.FileOf(path)
	if errors.Is(err, os.ErrNotExist) {
		return loop.File{}, status.Errorf(codes.NotFound, "volume %s does not exist on node %s", volume, n.name)
	}
	if err != nil {
		return loop.File{}, status.Error(codes.Internal, err.Error())
	}
	return file, nil
}

// mounted tells whether a disk is mounted at path. That another one is, is an error.
func (n *Node) mounted(file loop.File, path string) (bool, error) {
	device, err := deviceAt(path)
	if err != nil {
		return false, status.Error(codes.Internal, err.Error())
	}
	if device != nil && device.File != file {
		return false, status.Errorf(codes.Internal, "%s has %s mounted, which is another volume", path, device.FilePath)
	}
	return device != nil, nil
}

// release calls do with the path of a volume, whose disk need not exist any more.
func (n *Node) release(volume, field, path string, do func(path string) error) error {
	if volume == "" {
		return status.Error(codes.InvalidArgument, "volume_id is required")
	}
	if !filepath.IsAbs(path) {
		return status.Errorf(codes.InvalidArgument, "%s must be an absolute path", field)
	}
	release, err := n.busy.hold(volume)
	if err != nil {
		return err
	}
	defer release()
	if err := do(path); err != nil {
		return status.Errorf(codes.Internal, "releasing volume %s: %v", volume, err)
	}
	return nil
}

// checkCapability refuses what a file system on one node cannot be.
func checkCapability(capability *csi.VolumeCapability) error {
	if capability == nil {
		return status.Error(codes.InvalidArgument, "volume_capability is required")
	}
	mount := capability.GetMount()
	if mount == nil {
		return status.Error(codes.InvalidArgument, "volume_capability: only file systems are supported, not block devices")
	}
	if fs := mount.GetFsType(); fs != "" && fs != FileSystem {
		return status.Errorf(codes.InvalidArgument, "volume_capability: file system %q is not supported: use xfs", fs)
	}
	if len(mount.GetMountFlags()) > 0 {
		return status.Error(codes.InvalidArgument, "volume_capability: mount options are not supported: remove them from the StorageClass")
	}
	switch mode := capability.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return nil
	default:
		return status.Errorf(codes.InvalidArgument, "volume_capability: access mode %s is not supported: a volume belongs to one node", mode)
	}
}

// exclusive lets one call at a time work on a volume.
type exclusive struct {
	mu   sync.Mutex // guards held
	held map[string]bool
}

// hold reserves the volume, or returns an error with the code that makes the kubelet try again later.
func (e *exclusive) hold(volume string) (release func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held[volume] {
		return nil, status.Errorf(codes.Aborted, "another call works on volume %s", volume)
	}
	e.held[volume] = true
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.held, volume)
	}, nil
}
